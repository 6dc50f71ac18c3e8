"""Who belongs to the cluster: its certificate authority, certificates for TLS both ways, and pairing by a short code."""
