"""Which filters can be cut together, how much each matters, and the cut itself: pure functions over graphs."""
