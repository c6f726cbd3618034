"""Runs revisions on the connection that `truing.collect.migrate` gives."""

from alembic import context

from truing.collect.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
