"""What the other assets of this project have cost, as a chart."""

from dagster_claude_batch import build_claude_batch_spending_asset

claude_batch_spending = build_claude_batch_spending_asset()
