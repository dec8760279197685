"""The site agent: link to the hub, reconciler, store, runtimes, gateway. It needs no hub to keep serving."""
