"""Keeps the keys and values of prompt beginnings, so that a prompt that begins like an earlier one
is read only from where it differs.

Prompts of a pipeline share an instruction, popular questions share their passages. The unit is a
block of tokens; a block is known by its own tokens and all before it, so equal tokens after
another beginning never meet (vLLM's automatic prefix caching hashes the same chain; SGLang's
RadixAttention, arXiv 2312.07104 section 3, keeps it as a tree). Here the chain is a dictionary
from (block before, tokens) to the block: compared, not hashed into a digest, so there is no
collision to think about.

Least recently used goes first. Using a block uses all before it, in the order from the last to
the first: a block is thus always older than the one before it, and the oldest is always an end
that no other block needs.

States are kept as they were computed, never rounded: a prompt read from here goes on exactly as
if it had been read anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor

BLOCK_TOKENS = 16

_Key = tuple[int, tuple[int, ...]]  # number of the block before (0: none), tokens of this one


@dataclass(frozen=True, slots=True)
class _Block:
    number: int
    states: Tensor  # [layers, 2, heads, BLOCK_TOKENS, size]


class PrefixCache:
    """At most `max_bytes` of states; may be used by several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()  # least recently used first
        self._last_number = 0
        self._lock = Lock()
        self.nbytes = 0
        self.num_prompt_tokens = 0  # of all prompts looked up
        self.num_reused_tokens = 0  # of those, found here

    @property
    def hit_rate(self) -> float:
        """Reused tokens as a share of all tokens of prompts."""
        return self.num_reused_tokens / self.num_prompt_tokens

    def find(self, prompt: Sequence[int]) -> list[Tensor]:
        """States of the longest known beginning of `prompt`, block by block. The last token is
        never part of it: somebody must compute what comes after."""
        with self._lock:
            known = self._known(prompt, (len(prompt) - 1) // BLOCK_TOKENS)
            self._use([key for key, _ in known])
            self.num_prompt_tokens += len(prompt)
            self.num_reused_tokens += len(known) * BLOCK_TOKENS
            return [block.states for _, block in known]

    def insert(self, prompt: Sequence[int], states: Tensor) -> None:
        """Keep all whole blocks of `prompt`; `states` [layers, 2, heads, positions, size] are
        those of its positions, and are copied."""
        num_blocks = len(prompt) // BLOCK_TOKENS
        block_bytes = states[:, :, :, :1].numel() * states.itemsize * BLOCK_TOKENS
        num_blocks = min(num_blocks, self._max_bytes // block_bytes)
        with self._lock:
            known = self._known(prompt, num_blocks)
            chain = [key for key, _ in known]
            before = known[-1][1].number if known else 0
            for number in range(len(known), num_blocks):
                begin, end = number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS
                key = (before, tuple(prompt[begin:end]))
                before = self._last_number = self._last_number + 1
                self._blocks[key] = _Block(before, states[:, :, :, begin:end].clone())
                self.nbytes += block_bytes
                chain.append(key)
            self._use(chain)
            while self.nbytes > self._max_bytes:
                self._blocks.popitem(last=False)
                self.nbytes -= block_bytes

    def _known(self, prompt: Sequence[int], num_blocks: int) -> list[tuple[_Key, _Block]]:
        found: list[tuple[_Key, _Block]] = []
        before = 0
        for number in range(num_blocks):
            key = (before, tuple(prompt[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS]))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append((key, block))
            before = block.number
        return found

    def _use(self, chain: Sequence[_Key]) -> None:
        for key in reversed(chain):
            self._blocks.move_to_end(key)
