"""What live traffic says of what serves here: counted by the gateway, kept on disk, told to the hub, judged here when the hub is away.

stats     what the gateway and the model server counted, read from their metrics
events    what happened, finer than any SLO's edge
history   one fleet's past: activations, the gateway's lives in them, 5-minute marks
baseline  what is usual: sums over 7 days, and how bursty they were
ledger    all fleets of a site, and how far each counter was read: what is on disk
report    what fits into the Lease
meter     reads, remembers, and says when there is news
verdict   whether this site takes a revision back by itself
"""
