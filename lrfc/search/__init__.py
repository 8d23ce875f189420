"""The search: candidates of each layer, their errors and costs, and the choice among them."""
