"""Our own routes, all under ``/lorkd``: each module has a ``router``; the front door mounts those that stand here."""

from fastapi import APIRouter

from lorkd_monailabel.routes import (
    active_learning,
    audit,
    experts,
    health,
    jobs,
    metrics,
    training,
    vocabulary,
    volumes,
)

PREFIX = "/lorkd"


def routers() -> list[APIRouter]:
    """Give the routers of all modules: a new one gets its name here, its routes their roles in front_door/roles.py."""
    return [
        module.router
        for module in (active_learning, audit, experts, health, jobs, metrics, training, vocabulary, volumes)
    ]
