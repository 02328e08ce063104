"""The REST API of BentoCloud and Yatai: client, routes, schemas and credentials; `api` and `transfer` call it."""
