"""How bytes cross the network."""
