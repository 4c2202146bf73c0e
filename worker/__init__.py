"""The engine: takes batches of posters off the queue and stores their vectors. It stands on `producer`."""

try:
    import producer.errors
except ImportError as error:
    import producer

    raise ImportError(
        f"`producer` is the module of another program here, {producer.__file__ or list(producer.__path__)}: start the "
        "worker in another folder, or rename that module"
    ) from error
