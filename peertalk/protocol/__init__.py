"""The half of the upper storey that thinks: peers, discovery, queues and connections as values and
tables, without I/O.

Never: a socket, a thread, a clock. Time is an argument (`now`, float seconds of a monotonic clock),
the codec is passed in.
"""
