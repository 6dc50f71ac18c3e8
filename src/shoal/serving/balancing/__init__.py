"""Which replica takes a request: `balancer` is asked, and told what became of it. Pure: time and chance are arguments."""
