"""A mirror: a registry that answers pulls from its own storage, and fetches what it lacks from another registry.

How a pull passes through a mirror:

- Records and lists are requested from the upstream each time, so `latest` is never old. Only if the upstream is down,
  the mirror answers with its own records, and a header of the response shows this.
- The bytes of an item are fetched once, however many clients wait for them. The download is that of the client: ranges
  in parallel, retries, verified parts, one byte budget. It writes a file, and each request follows that file while it
  grows: no client waits until the fetch is complete.
- All clients download by the route `download` (`transmission_strategy` is `proxy`), not by presigned URLs: BentoML
  waits 60 seconds there between two bytes, and 5 seconds at a presigned URL, less than a slow upstream may need for a
  range. Both serve ranges, with the ETag of the upstream and its size from the first byte on.
- A complete item is published in the mirror's records like a push. `upload_finished_at` there is that of the upstream:
  another time means that the version was pushed again, and is fetched again.
- An evicted or replaced item stays on the disk until its last download ends.

These modules are the only ones of the registry that use the client.
"""
