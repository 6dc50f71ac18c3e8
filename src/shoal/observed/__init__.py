"""What operators see of a cluster, as plain data: what the head answers, the gateway sends, and the console, `shoal top` and tools read.

Times are seconds since 1970, durations seconds, sizes bytes, unless a name says otherwise.
"""
