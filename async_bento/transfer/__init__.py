"""How bytes cross the network: the uploads, downloads and copies that `api` calls; requests for JSON are in `rest`."""
