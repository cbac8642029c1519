"""How the answers compare with what people said."""

import dagster as dg
import pandas as pd

MIN_AGREEMENT = 0.5
"""Share of snippets; guessing one of three labels gives a third."""

NEUTRAL_BELOW = 0.2
"""People's mean ratings, -4 to 4, that are nearer to zero count as neutral."""


@dg.asset(
    ins={
        "snippet_sentiment": dg.AssetIn(
            input_manager_key="dataframes",
            metadata={"columns": ["_partition", "label", "score", "human_score"]},
        )
    },
    io_manager_key="dataframes",
    group_name="sentiment",
    kinds={"duckdb", "pandas"},
)
def sentiment_by_corpus(snippet_sentiment: pd.DataFrame) -> pd.DataFrame:
    """One row for each corpus: the mix of labels, and how far it agrees with people."""
    answers = snippet_sentiment.assign(
        agrees=snippet_sentiment["label"] == snippet_sentiment["human_score"].map(people_label)
    )
    by_corpus = answers.groupby("_partition")
    return pd.DataFrame(
        {
            "answers": by_corpus.size(),
            **{
                label: by_corpus["label"].agg(lambda labels, label=label: (labels == label).mean())
                for label in ("positive", "neutral", "negative")
            },
            "agreement": by_corpus["agrees"].mean(),
            "correlation": by_corpus[["score", "human_score"]].apply(
                lambda rows: rows["score"].corr(rows["human_score"])
            ),
        }
    ).reset_index(names="corpus")


@dg.asset_check(
    asset=sentiment_by_corpus,
    description=f"In each corpus, at least {MIN_AGREEMENT:.0%} of the labels are people's.",
)
def agrees_with_people(sentiment_by_corpus: pd.DataFrame) -> dg.AssetCheckResult:
    """Compare the labels with those that people's ratings stand for."""
    agreement = sentiment_by_corpus.set_index("corpus")["agreement"]
    correlation = sentiment_by_corpus.set_index("corpus")["correlation"]
    return dg.AssetCheckResult(
        passed=bool((agreement >= MIN_AGREEMENT).all()),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            **{f"agreement/{corpus}": float(share) for corpus, share in agreement.items()},
            **{f"correlation/{corpus}": float(value) for corpus, value in correlation.items()},
            "threshold": MIN_AGREEMENT,
        },
    )


def people_label(human_score: float) -> str:
    """Turn people's mean rating, -4 to 4, into a label."""
    if abs(human_score) < NEUTRAL_BELOW:
        return "neutral"
    return "positive" if human_score > 0 else "negative"
