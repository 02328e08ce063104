"""The pages of a registry, for people: server-rendered HTML, which shows and changes nothing."""
