"""Loading language models."""

import logging

# Transformers imports torchao where it is installed (gptqmodel brings it), which then reports the
# GPU libraries that it cannot load.
for _noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
