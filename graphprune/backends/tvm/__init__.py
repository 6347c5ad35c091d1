"""TVM: lowering, schedules, tuning and timing."""
