"""Rows are the truth of services, versions, replicas and rollouts: a control plane that starts anew goes on from them."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, Table, Text, text

from penstock.store.tables import metadata

services = Table(
    "services",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON
    Column("generation", Integer, nullable=False),
    Column("spec", Text, nullable=False),  # JSON of serving.spec.ServiceSpec
    Column("wanted", Integer),  # replicas, as the autoscaler or `penstock scale` said last; null: the spec's
    Column("scaling", Text, nullable=False),  # JSON: what the autoscaler remembers
    Column("demand_at", Double),  # a request waited for a first replica then
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("deleted_at", Double),  # its replicas drain; the row goes with the last of them
    Index("ix_services_name", "project", "name", unique=True),
)

versions = Table(
    "service_versions",
    metadata,
    Column("service_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("template", Text, nullable=False),  # JSON: the fields of spec.TEMPLATE
    Column("digest", Text, nullable=False),  # SHA-256 of it
    Column("user", Text, nullable=False),  # who made it: its replicas are their jobs
    Column("unix_user", Text),
    Column("role", Text, nullable=False),  # state.Role
    Column("weight", Integer, nullable=False),  # of state.WHOLE, as the gateway was told last
    Column("mirror", Integer, nullable=False),
    Column("failures", Integer, nullable=False),  # replicas in a row that ended before they were of use
    Column("next_at", Double),  # no replica is started before (back-off)
    Column("message", Text, nullable=False),  # why the last one ended
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),
    Column("reason", Text, nullable=False, server_default=text("''")),  # base.reasons.Reason: what the message is
)

replicas = Table(
    "service_replicas",
    metadata,
    Column("id", Text, primary_key=True),  # its job's
    Column("service_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),  # its job's
    Column("phase", Text, nullable=False),  # state.ReplicaPhase
    Column("since", Double, nullable=False),
    Column("address", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("grpc_port", Integer, nullable=False),
    Column("metrics_port", Integer, nullable=False),
    Column("stages", Text, nullable=False),  # JSON: seconds by stage of its cold start
    Index("ix_service_replicas_service_id", "service_id"),
)

rollouts = Table(
    "service_rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("service_id", Text, nullable=False),
    Column("stable", Integer, nullable=False),  # a version's number
    Column("candidate", Integer, nullable=False),
    Column("phase", Text, nullable=False),  # state.RolloutPhase
    Column("step", Integer, nullable=False),
    Column("since", Double, nullable=False),  # of the step
    Column("memory", Text, nullable=False),  # JSON: what the rollout's planner remembers
    Column("evidence", Text, nullable=False),  # JSON: each step with what was seen and decided
    Column("asked", Text, nullable=False),  # "promote" or "rollback", by a person, until it is done
    Column("asked_by", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Index("ix_service_rollouts_service_id", "service_id"),
)

keys = Table(
    "service_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("service_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the key, which is shown once
    Column("user", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_service_keys_service_id", "service_id"),
)

waivers = Table(
    "serving_waivers",
    metadata,
    Column("project", Text, primary_key=True),  # may serve pickles, which run code when they are read
    Column("user", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
