"""Seeded schedules of crashes, faults and second runs, played on the real engine."""
