"""Progress of transfers: events, listeners, summaries."""
