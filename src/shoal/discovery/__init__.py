"""How nodes find the head of a cluster: an address that is given, multicast DNS on the LAN, or a key in Redis."""
