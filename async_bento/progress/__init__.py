"""Progress of transfers: the events that `api` and `transfer` send, and the listeners that show them."""
