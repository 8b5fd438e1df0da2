"""The errors people see.

    HeliographError            one line that says what is wrong and what to do; the CLI prints it and exits 1
    ├── SettingsError          a setting is missing or wrong
    ├── UnavailableError       a store or broker cannot be reached
    ├── PublishError           the broker did not acknowledge; nothing may be assumed about the record
    ├── TopicsError            the topics of the cluster are not those of schemas/topics.yaml
    ├── RegistryError          the Schema Registry lacks or refuses a schema
    └── DeadLetterFlood        so many records cannot be used that none is given up any more

May import nothing. What never enters here: errors that one module raises to itself.
"""


class HeliographError(Exception):
    """Base of every error meant for people: the message is one line and says what to do."""


class SettingsError(HeliographError):
    """A setting is missing, unknown or wrong."""


class UnavailableError(HeliographError):
    """A store, broker or port cannot be used now."""


class PublishError(HeliographError):
    """The broker did not acknowledge a record in time: it may or may not be stored, publish it again with the same id."""


class TopicsError(HeliographError):
    """A topic is missing, or differs in a way that must not be changed."""


class RegistryError(HeliographError):
    """The Schema Registry lacks a schema, or refuses one."""


class DeadLetterFlood(HeliographError):
    """Too large a share of the records cannot be used: a mistake somebody must look at, not an accident."""
