"""Every tweet in several languages: a partition for each language and corpus."""

import dagster as dg

from dagster_claude_batch import build_claude_batch_asset
from example_project.defs.snippets import snippets

LANGUAGES = ["German", "Portuguese", "Japanese"]
CORPORA = ["amazon_reviews", "movie_reviews", "tweets"]

SHARED = (
    "You translate what people wrote about products, films and their day. Keep the tone, slang and "
    "punctuation of the original, however rude or clumsy. Leave names, titles, hashtags and links "
    "as they are. Answer with the translation alone."
)

snippet_translations = build_claude_batch_asset(
    "snippet_translations",
    query=f"SELECT * FROM snippets, unnest({LANGUAGES}) AS l(language)",
    deps=[snippets],
    row_key="snippet_id",
    system=SHARED,
    prompt="Translate into {{ language }}:\n\n{{ text }}",
    include=("text",),
    partitions_def=dg.MultiPartitionsDefinition(
        {
            "language": dg.StaticPartitionsDefinition(LANGUAGES),
            "corpus": dg.StaticPartitionsDefinition(CORPORA),
        }
    ),
    partition_expr={"language": "language", "corpus": "corpus"},
    group_name="translations",
)
