"""How nodes find the head of a cluster: a given address, multicast DNS on the LAN, or a key in Redis."""
