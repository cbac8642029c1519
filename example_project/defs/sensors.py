"""Notices when batches have ended, and lets their results be collected."""

from dagster_claude_batch import claude_batch_sensor

__all__ = ["claude_batch_sensor"]
