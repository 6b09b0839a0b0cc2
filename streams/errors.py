"""
Our errors, each one line that says what to do:

* HeadraceError               exit code 1
  + SettingsError             exit code 2: a key, its value and the cure
  + BrokerError               Kafka cannot be started or reached
  + TopicsError               a topic differs from what the settings say
  + ArtifactMismatch          a model artifact is corrupt, of another version, or not the one named
  + Fatal                     a role must end now; the supervisor starts it again (crash-only)
"""


class HeadraceError(Exception):
    """The message is shown to the user as it is, in one line."""

    exit_code = 1


class SettingsError(HeadraceError):
    """A setting is wrong: names the key, the value and the cure."""

    exit_code = 2


class BrokerError(HeadraceError):
    """Kafka cannot be started or reached."""


class TopicsError(HeadraceError):
    """A topic is missing or differs from the settings."""


class ArtifactMismatch(HeadraceError):
    """A model artifact is corrupt, of another version, or not the one named."""


class Fatal(HeadraceError):
    """Memory may be ahead of the log, or a client is beyond repair: end the process, the next start rebuilds."""
