"""/operator: the cluster for those who watch and manage it (docs/operating.md)."""
