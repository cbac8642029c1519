"""What Claude sees in each picture, and the pictures beside it in the UI."""

import base64
from contextlib import closing

import dagster as dg
from dagster_duckdb import DuckDBResource
from pydantic import BaseModel, Field

from dagster_claude_batch import Image, Text, build_claude_batch_asset
from example_project.defs.pictures import pictures


class Caption(BaseModel):
    """What Claude answers for each picture; the fields become columns."""

    caption: str = Field(description="One sentence for readers who see the picture.")
    alt_text: str = Field(description="What it shows, for readers who do not see it.")
    tags: list[str] = Field(description="Up to five single words.")


picture_captions = build_claude_batch_asset(
    "picture_captions",
    source=pictures,
    row_key="name",
    prompt=[Image("photo"), Text("Caption this picture, which is called {{ name }}.")],
    output=Caption,
    group_name="captions",
)


@dg.asset(deps=[picture_captions], group_name="captions", kinds={"duckdb"})
def caption_sheet(duckdb: DuckDBResource) -> dg.MaterializeResult:
    """Each picture beside its caption: look at the metadata of its materializations."""
    with duckdb.get_connection() as connection, closing(connection):
        rows = connection.execute(
            "SELECT photo, caption, tags FROM pictures JOIN picture_captions USING (name) "
            "ORDER BY name"
        ).fetchall()
    shown = "\n".join(
        f"| ![]({_inline(photo)}) | {caption} | {', '.join(tags)} |"
        for photo, caption, tags in rows
    )
    sheet = f"| picture | caption | tags |\n|---|---|---|\n{shown}"
    return dg.MaterializeResult(
        metadata={"dagster/row_count": len(rows), "captions": dg.MetadataValue.md(sheet)}
    )


def _inline(photo: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
