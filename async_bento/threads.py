from async_bento.concurrency import *  # noqa
