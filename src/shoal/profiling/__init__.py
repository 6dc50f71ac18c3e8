"""Where the time of a cluster's steps goes: timelines in, a profile out, and what is drawn of it. Pure."""
