"""Which memory strategy a run can afford."""

from reversible_hypergrad.planning.plan import Plan, Row, plan, plan_for

__all__ = ["Plan", "Row", "plan", "plan_for"]
