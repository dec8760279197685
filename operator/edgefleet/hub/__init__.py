"""The hub: thin kopf handlers, the inventory of sites, and the loops that gather, decide, act and summarise."""
