"""The search: similarity, candidates, costs, and the allocation of one choice to each layer."""
