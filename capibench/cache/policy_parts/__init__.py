"""What the policies that watch the traffic are made of."""
