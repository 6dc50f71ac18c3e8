"""HTTP itself: connections that are watched, what an error becomes, which API a request speaks."""
