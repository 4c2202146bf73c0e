"""The command `export`."""

import dataclasses
import sys
from contextlib import closing
from pathlib import Path

import click
from tqdm import tqdm

from producer.cli.main import as_json, example, space_option
from producer.collection.catalogue import open_catalogue
from producer.export.export import FORMATS, SHARD_ROWS
from producer.export.export import export as write_export
from producer.export.faiss import KINDS
from producer.export.source import Source
from producer.maintenance.spaces import find_space, store_for_reading
from producer.output import emit, emit_json
from producer.settings import load_settings


@example("python -m producer export vectors/ --format faiss")
@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--format", "format", type=click.Choice(FORMATS), default="npy", show_default=True)
@click.option("--index", type=click.Choice(KINDS), default="auto", show_default=True, help="Kind of --format faiss.")
@click.option("--shard-rows", type=click.IntRange(1), default=SHARD_ROWS, show_default=True, help="Rows per .npy file.")
@click.option("--replace", is_flag=True, help="Replace an earlier export in DIR.")
@space_option
@as_json
def export(
    folder: Path, format: str, index: str, shard_rows: int, replace: bool, space: str | None, as_json: bool
) -> None:
    """Write the vectors of one space into DIR, which appears only when it is complete.

    \b
    npy      img_emb/*.npy and metadata/*.parquet, as clip-retrieval lays them out
    parquet  one table with a column of vectors
    faiss    an inner-product index, and the list of poster ids in its order
    """
    settings = load_settings()
    with closing(store_for_reading(settings)) as store:
        source = Source(store, find_space(store, space), open_catalogue(settings))
        total = source.info.count
        with tqdm(total=total, unit="poster", file=sys.stderr, disable=True if as_json else None) as bar:
            done = write_export(
                source, folder, format, index=index, shard_rows=shard_rows, replace=replace, on_rows=bar.update
            )
    if as_json:
        emit_json(dataclasses.asdict(done))
        return
    rate = done.rows / done.seconds if done.seconds else 0.0
    emit(
        f"{done.folder} format {done.format} space {done.space} rows {done.rows} bytes {done.bytes} "
        f"seconds {done.seconds} rows_per_second {rate:.0f}"
    )
