defmodule Kith.Telemetry do
  @moduledoc """
  The events of Kith, for `:telemetry.attach/4`.

  This page is a contract: events and keys are added, never renamed or taken away. `:telemetry` is
  optional; without it nothing is emitted and nothing else changes.

  Whoever does not want to handle them has `metrics/1` for LiveDashboard and the reporters of `telemetry_metrics`,
  `Kith.Monitor` for percentiles, alerts and Prometheus, and `attach_logger/1` for a log.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:kith, :session, :encrypt, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id` |
  | `[:kith, :session, :encrypt, :stop]` | `monotonic_time`, `duration`, `plaintext_size`, `message_size`, `recipients` | the same, `result`, `reason`, `type` |
  | `[:kith, :session, :encrypt, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :session, :decrypt, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id`, `type` |
  | `[:kith, :session, :decrypt, :stop]` | `monotonic_time`, `duration`, `plaintext_size`, `message_size` | the same, `result`, `reason` |
  | `[:kith, :session, :decrypt, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :session, :establish, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id`, `role` |
  | `[:kith, :session, :establish, :stop]` | `monotonic_time`, `duration`, `sessions` | the same, `result`, `reason` |
  | `[:kith, :group, :encrypt, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id` |
  | `[:kith, :group, :encrypt, :stop]` | `monotonic_time`, `duration`, `plaintext_size`, `message_size`, `recipients`, `failed` | the same, `result`, `reason` |
  | `[:kith, :group, :encrypt, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :prekeys, :generate, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id` |
  | `[:kith, :prekeys, :generate, :stop]` | `monotonic_time`, `duration`, `count`, `kyber_count` | the same, `result`, `reason` |
  | `[:kith, :prekeys, :claim, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id` |
  | `[:kith, :prekeys, :claim, :stop]` | `monotonic_time`, `duration`, `count`, `remaining`, `kyber_count`, `kyber_remaining` | the same, `result`, `reason` |
  | `[:kith, :prekeys, :rotate, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id` |
  | `[:kith, :prekeys, :rotate, :stop]` | `monotonic_time`, `duration`, `count`, `kyber_count` | the same, `result`, `reason` |
  | `[:kith, :prekeys, :stock]` | `one_time`, `kyber_one_time`, `signed_age`, `last_resort_age` | `instance`, `user_id`, `device_id`, `local` |
  | `[:kith, :prekeys, :total]` | `devices`, `low`, `one_time`, `kyber_one_time`, `signed_age`, `last_resort_age` | `instance`, `local` |
  | `[:kith, :prekeys, :purge]` | `count`, `signed_count`, `base_keys` | `instance` |
  | `[:kith, :sessions, :purge]` | `skipped_keys`, `recoveries`, `messages` | `instance` |
  | `[:kith, :sessions, :expire]` | `count`, `age` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id` |
  | `[:kith, :sqlite, :checkpoint]` | `size` | `instance`, `result`, `reason`, `emptied` |
  | `[:kith, :maintenance, :run, :start]` | `monotonic_time`, `system_time` | `instance`, `task` |
  | `[:kith, :maintenance, :run, :stop]` | `monotonic_time`, `duration`, `count`, `failed` | the same, `result`, `reason`, `claimed` |
  | `[:kith, :maintenance, :run, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :installation, :restored]` | `system_time`, `sessions` | `instance` |
  | `[:kith, :session, :recover, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id` |
  | `[:kith, :session, :recover, :stop]` | `monotonic_time`, `duration`, `reports` | the same, `cause`, `result`, `reason` |
  | `[:kith, :session, :recover, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :session, :resend, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id` |
  | `[:kith, :session, :resend, :stop]` | `monotonic_time`, `duration`, `messages` | the same, `renewed`, `result`, `reason` |
  | `[:kith, :session, :resend, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :archive, :history, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `device_id` |
  | `[:kith, :archive, :history, :stop]` | `monotonic_time`, `duration`, `messages`, `damaged`, `plaintext_size` | the same, `result`, `reason` |
  | `[:kith, :archive, :history, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :archive, :shred, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :archive, :shred, :stop]` | `monotonic_time`, `duration`, `messages` | the same, `result`, `reason` |
  | `[:kith, :archive, :shred, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :archive, :reseal, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :archive, :reseal, :stop]` | `monotonic_time`, `duration`, `resealed`, `refused` | the same, `result`, `reason` |
  | `[:kith, :archive, :reseal, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :archive, :redelivery]` | `system_time`, `count` | `instance`, `user_id`, `device_id`, `peer_id`, `peer_device_id`, `reason` |
  | `[:kith, :account, :unlock, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `by` |
  | `[:kith, :account, :unlock, :stop]` | `monotonic_time`, `duration` | the same, `result`, `reason` |
  | `[:kith, :account, :unlock, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :account, :reseal, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id` |
  | `[:kith, :account, :reseal, :stop]` | `monotonic_time`, `duration`, `resealed`, `refused` | the same, `result`, `reason` |
  | `[:kith, :account, :reseal, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :keys, :rotate, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :keys, :rotate, :stop]` | `monotonic_time`, `duration`, `rewrapped`, `current`, `refused`, `rotated` | the same, `result`, `reason` |
  | `[:kith, :keys, :rotate, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :keys, :verify, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :keys, :verify, :stop]` | `monotonic_time`, `duration`, `opened`, `damaged`, `locked`, `outdated` | the same, `result`, `reason` |
  | `[:kith, :keys, :verify, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :password, :hash, :start]` | `monotonic_time`, `system_time` | none |
  | `[:kith, :password, :hash, :stop]` | `monotonic_time`, `duration`, `waited` | `result`, `reason` |
  | `[:kith, :password, :hash, :exception]` | `monotonic_time`, `duration` | `kind`, `reason`, `stacktrace` |
  | `[:kith, :password, :verify, :start]` | `monotonic_time`, `system_time` | none |
  | `[:kith, :password, :verify, :stop]` | `monotonic_time`, `duration`, `waited` | `result`, `reason`, `matched` |
  | `[:kith, :password, :verify, :exception]` | `monotonic_time`, `duration` | `kind`, `reason`, `stacktrace` |
  | `[:kith, :vault, :error]` | `system_time`, `count` | `vault`, `operation`, `reason` |
  | `[:kith, :vault, :migrate, :start]` | `monotonic_time`, `system_time` | `table`, `mode` |
  | `[:kith, :vault, :migrate, :progress]` | `rows`, `upgraded`, `already`, `outdated`, `refused`, `empty` | `table`, `mode` |
  | `[:kith, :vault, :migrate, :stop]` | `monotonic_time`, `duration`, `rows`, `upgraded`, `already`, `outdated`, `refused`, `empty` | the same, `result`, `reason` |
  | `[:kith, :vault, :migrate, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :signed, :verify, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :signed, :verify, :stop]` | `monotonic_time`, `duration`, `payload_size` | the same, `key_id`, `result`, `reason` |
  | `[:kith, :signed, :verify, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :signed, :sign, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :signed, :sign, :stop]` | `monotonic_time`, `duration`, `payload_size` | the same, `result`, `reason` |
  | `[:kith, :signed, :sign, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :signed, :change, :start]` | `monotonic_time`, `system_time` | `instance`, `action` |
  | `[:kith, :signed, :change, :stop]` | `monotonic_time`, `duration` | the same, `key_id`, `result`, `reason` |
  | `[:kith, :signed, :change, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :client_key, :seal, :start]` | `monotonic_time`, `system_time` | `instance`, `cipher` |
  | `[:kith, :client_key, :seal, :stop]` | `monotonic_time`, `duration`, `plaintext_size` | the same, `result`, `reason` |
  | `[:kith, :client_key, :seal, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :client_key, :open, :start]` | `monotonic_time`, `system_time` | `instance`, `cipher` |
  | `[:kith, :client_key, :open, :stop]` | `monotonic_time`, `duration`, `plaintext_size` | the same, `result`, `reason` |
  | `[:kith, :client_key, :open, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :export, :written]` | `system_time`, `rows` | none |
  | `[:kith, :export, :verify, :start]` | `monotonic_time`, `system_time` | none |
  | `[:kith, :export, :verify, :stop]` | `monotonic_time`, `duration`, `rows` | `result`, `reason` |
  | `[:kith, :export, :verify, :exception]` | `monotonic_time`, `duration` | `kind`, `reason`, `stacktrace` |
  | `[:kith, :backup, :export, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id` |
  | `[:kith, :backup, :export, :stop]` | `monotonic_time`, `duration`, `size`, `sessions`, `messages`, `damaged` | the same, `result`, `reason` |
  | `[:kith, :backup, :verify, :start]` | `monotonic_time`, `system_time` | `instance` |
  | `[:kith, :backup, :verify, :stop]` | `monotonic_time`, `duration`, `size` | the same, `result`, `reason` |
  | `[:kith, :backup, :verify, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :backup, :restore, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id` |
  | `[:kith, :backup, :restore, :stop]` | `monotonic_time`, `duration`, `size`, `sessions`, `messages` | the same, `result`, `reason` |
  | `[:kith, :backup, :restore, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :backup, :escrow, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `by` |
  | `[:kith, :backup, :escrow, :stop]` | `monotonic_time`, `duration` | the same, `result`, `reason` |
  | `[:kith, :backup, :escrow, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :backup, :unwrap, :start]` | `monotonic_time`, `system_time` | `instance`, `user_id`, `by` |
  | `[:kith, :backup, :unwrap, :stop]` | `monotonic_time`, `duration` | the same, `result`, `reason` |
  | `[:kith, :backup, :unwrap, :exception]` | `monotonic_time`, `duration` | the same as at the start, `kind`, `reason`, `stacktrace` |
  | `[:kith, :kms, :call, :start]` | `monotonic_time`, `system_time` | `instance`, `operation` |
  | `[:kith, :kms, :call, :stop]` | `monotonic_time`, `duration` | the same, `result`, `reason`, `failure` |
  | `[:kith, :kms, :fallback]` | `system_time`, `count` | `instance` |
  | `[:kith, :nif, :panic]` | `system_time`, `count` | `instance`, `function` |
  | `[:kith, :health, :check]` | `duration`, `store_duration`, `vault_duration`, `store`, `vault` | `instance`, `result`, `reason`, `store_reason`, `vault_reason` |
  | `[:kith, :alert, :raised]` | `system_time` | `instance`, `rule`, `severity` |
  | `[:kith, :alert, :cleared]` | `system_time`, `duration` | `instance`, `rule`, `severity` |

  ## Measurements

  `monotonic_time` and `duration` are in native units (`System.convert_time_unit/3`), `system_time` is
  `System.system_time/0`. Sizes are bytes: `plaintext_size` of the plaintext, `message_size` of all bodies
  together; both are 0 where there is none. `recipients` counts the devices addressed, `failed` those of
  them that got an error. `reports` and `messages` count the envelopes to deliver. `sessions` counts the sessions established, or
  those that start anew after a restored database. `count` is how many one-time prekeys were
  made or handed out (0 when the user has none left), or how many panics; `remaining` is the stock after the
  claim. `messages` counts what a page has or what was shredded, `damaged` those of a page that do not open. `kyber_count` and `kyber_remaining` say the same of one-time Kyber prekeys; when none was handed out, the one
  of last resort was.

  Those of maintenance are emitted in each pass (`Kith.maintain/1`). `:run` is one for each task: `count` is how many
  devices, sessions or rows it was about, `failed` how many devices or sessions got an error. `:rotate` counts the signed prekeys and the Kyber
  prekeys of last resort that were made. `:stock` is a gauge, of each device that has few one-time prekeys left or whose signed
  prekey should have been replaced long ago, as the pass found it; `:total` sums up all devices, those with few being `low`, with the
  oldest prekeys among them. Ages are seconds, 0 where there is nothing of that age. `:purge` counts what was deleted: one-time prekeys of
  both kinds, `signed_count` signed prekeys and Kyber prekeys of last resort, `base_keys` remembered of them; keys of skipped
  messages, counts of recoveries, and expired messages of the archive. `:expire` is one session, put away `age` seconds after it
  was made. `size` is the bytes of the write-ahead log before the checkpoint, and of a backup those that were written or read; `damaged` are
  the rows that do not open and are not in it.

  `store` and `vault` of a `:check`, which is `Kith.health/2`, are 1 where it is well and 0 where not; `store_duration` and
  `vault_duration` are how long each took, `duration` both. The `duration` of an alert of `Kith.Monitor` that is `:cleared`
  is how long it fired.
  `resealed` counts the rows that were sealed under another data key, of `Kith.lock_with_password/4` and its like, `rewrapped` the data keys that
  were wrapped under another key-encryption key by `Kith.rotate_keys/2`, `current` those that were already, `rotated` the accounts and threads whose key was
  replaced; `refused` counts what did not open and was left as it is.
  `waited`, in native units too, is the part of `duration` in which other passwords had their turn. `payload_size` is the
  bytes of a signed payload, 0 where it was refused.
  Of a `:migrate`, which is `Kith.Vault.Migrator`, `rows` are those looked at, and the others count their fields, as its report
  does; of an `:export`, `rows` are those in it.
  The `duration` of a `[:kith, :kms, :call]` is that of all its attempts; a `:fallback` is one data key that the key named in
  `:fallback` wraps.

  ## Metadata

  `instance` is the name of the instance. `user_id` and `device_id` say whose keys did the work (in a claim:
  whose prekey it is), `peer_id` and `peer_device_id` the other side; the device is `nil` where a user with all their
  devices is meant. `result` is `:ok` or `:error`; `reason`
  is `nil` or one of `t:Kith.Error.reason/0`. `type` is the type of the envelope, `nil` where none was made.
  In a `:redelivery`, an answer out of the archive, `reason` is what the message would have been refused with.
  `role` is `:initiator` or `:responder`. `cause` is the reason that was given to `Kith.recover/4`, `renewed` whether the
  next message starts a new session. `by` of an `:unlock` is `:password` or `:token`. `function` is the name of the native function; its `instance` is `nil` when it was about a password or an export. `key_id`
  is the id of a registered public key of a client, `nil` where none is known; of a `:change`, the key that was registered, replaced, revoked, given
  permissions or made, as `action` says: `:register`, `:rotate`, `:revoke`, `:permit` or `:rotate_service_key`. `cipher` is `:aes_256_gcm`,
  `:chacha20_poly1305`, or `nil` for bytes that name none. `matched` is whether
  the password was the right one; `Kith.Password.dummy_verify/1` is a `:verify` too, of nobody, that did not match. `local` is `false` of devices whose
  private keys live elsewhere: only their own client can give them new prekeys. `task` is `:replenish`, `:rotate`,
  `:purge`, `:expire` or `:checkpoint`, `claimed` is `false` when another node was doing it, or had done it a short while ago. `emptied` is `false` of a
  checkpoint that gave way to a reader: the log is emptied later. `store_reason` and `vault_reason` are what is wrong with each,
  `nil` where nothing is. `vault` is the module of a `Kith.Vault`, `operation` is `:encrypt` or `:decrypt`, or what a key service was asked for:
  `:create_dek_for_thread`, `:encrypt`, `:decrypt` or `:get_wrapped`, whose `:key_not_found` is the good answer to `Kith.health/2`. `failure` says more than
  `reason` where it failed: `:connect`, `:timeout`, `:broken`, `:tls`, `:forbidden`, `:status` (none of the protocol), `:answer` (no answer of the protocol, or too
  long), `:paused` (nothing was asked, as a call failed a moment ago), `:key_not_found` or `:refused`. `table` is the name of
  a table, `mode` is `:upgrade`, `:dry_run` or `:verify`. `rule` is the name of a rule of `Kith.Monitor`, `severity` is `:critical` or `:warning`.
  Of `:escrow` and `:unwrap`, `by` is who has put a recovery key into escrow, or unwrapped it, as the application names them. There is
  never a key, a plaintext or a message in them: in an `:exception` event `reason` is the module of the exception, or
  the kind for a throw or an exit, and the stack trace has arities in place of arguments. All events of one
  span share `telemetry_span_context`.

  ## Order

  The two events of an `:export` are emitted together when its stream ends, with the times at which it began and ended; of one that
  is not read to its end the result is `:error`, and the reason `nil` unless an error ended it.
  The calls of one key to a key service are emitted together, when the last of them is done.

  `:establish`, `:generate`, `:claim`, `:rotate`, `:redelivery` and `:restored` are emitted once their transaction is committed, with the times at
  which they happened; what was rolled back is not reported. So a handler does not run while the database is
  held, but for `[:kith, :nif, :panic]`, and for all events of a call inside the application's own transaction.
  """

  alias Kith.{Error, Instance}
  alias Kith.Telemetry.{Log, Metrics}

  @doc """
  Returns what is worth watching, as a list of metrics for the reporters of the package `telemetry_metrics`.

      # lib/my_app_web/telemetry.ex, which Phoenix's generator makes
      def metrics, do: Kith.Telemetry.metrics() ++ [...]

    * `:durations` - `:summary` (default), for LiveDashboard, whose reporter has percentiles of its own; or `:distribution`, for
      exporters of Prometheus.
    * `:buckets` - with `:distribution`, the bounds in milliseconds. Default: 15 from 0.25 to 10,000.
    * `:instance` - only that instance. Default: all.

  Durations are milliseconds. The tags are among `instance`, `result`, `reason`, `type`, `role` and `task`: a user or a device
  is never one, as each would be a series of its own, and somebody's name.

  Raises `ArgumentError` for other options, and where `telemetry_metrics` is not there.
  """
  @spec metrics(keyword) :: [struct]
  def metrics(options \\ []), do: Metrics.list(options)

  @doc """
  Logs the events somebody may want to read, a line each.

      # in start/2 of the application, before its children are started
      Kith.Telemetry.attach_logger()

  | level | what |
  | --- | --- |
  | error | a panic of the engine; an operation that failed with `:storage` or `:unavailable`, or raised; a database that does not answer, or data keys that do not open, when asked by `Kith.health/2` |
  | warning | a security event: `decrypt` answered `:tampered` or `:untrusted_identity`; `:corrupted_state`; a call of `encrypt` or `decrypt` slower than `:slow`; a session begun without a one-time prekey, as there was none; a recovery key in escrow that was unwrapped, or asked for in vain |
  | info | a message reported or sent again after it did not open, a session put away unanswered, a second delivery answered out of the archive, an account backed up or restored |
  | debug | each call of `encrypt`, `encrypt_group` and `decrypt`, and each session that is begun |

  What Kith logs by itself is not logged a second time: a database that was restored, what fails in maintenance, and the alerts
  of `Kith.Monitor`.

    * `:instance` - only that instance. Default: all.
    * `:level` - the lowest level that is logged, `:error`, `:warning`, `:info` or `:debug`; events below it cost nothing.
      Default `:info`.
    * `:slow` - milliseconds. Default 100.
    * `:user_ids` - whether lines say whose keys did the work and for whom. Default `false`: a log is read by more people than the
      database, is kept longer and often elsewhere, and who writes to whom is what its users would not want in it.

  Returns `{:error, :already_exists}` where it is attached already, for this `:instance` or for all. Raises
  `ArgumentError` for other options, and where `:telemetry` is not there.
  """
  @spec attach_logger(keyword) :: :ok | {:error, :already_exists}
  def attach_logger(options \\ []), do: Log.attach(options)

  @doc """
  Detaches what `attach_logger/1` has attached. Takes the same `:instance`.

  Returns `{:error, :not_found}` where there is nothing.
  """
  @spec detach_logger(instance: term) :: :ok | {:error, :not_found}
  def detach_logger(options \\ []), do: Log.detach(options)

  @typedoc false
  # What happened inside a transaction, kept until it is committed.
  @type recorded ::
          {[atom], started :: {integer, integer}, finished :: integer, map, map, map}
          | {[atom], measurements :: map, metadata :: map}

  @doc false
  def detect, do: :persistent_term.put(__MODULE__, Code.ensure_loaded?(:telemetry))

  @doc false
  def available?, do: :persistent_term.get(__MODULE__, false)

  @doc false
  # Whose keys do the work, in metadata.
  def local(%Instance{name: name}, {user, device}),
    do: %{instance: name, user_id: user, device_id: device}

  @doc false
  # The other side: a device, or a user with all of them.
  def peer({user, device}), do: %{peer_id: user, peer_device_id: device}
  def peer(user), do: %{peer_id: user, peer_device_id: nil}

  @doc false
  def pair(instance, local, peer), do: Map.merge(local(instance, local), peer(peer))

  @doc false
  # `fun` returns {result, measurements, metadata of :stop}.
  @spec span([atom], map, (() -> {result, map, map})) :: result when result: term
  def span(event, metadata, fun) do
    emitted_span(event, Map.put(metadata, :telemetry_span_context, make_ref()), fun)
  end

  # As :telemetry.span/3, but for the exception: its reason and stack trace may hold the plaintext a
  # function was called with, so handlers, and whoever prints the crash, get them without arguments.
  defp emitted_span(event, metadata, fun) do
    started = System.monotonic_time()
    start(event, started, System.system_time(), metadata)

    try do
      {result, measurements, more} = fun.()
      stop(event, started, System.monotonic_time(), measurements, Map.merge(metadata, more))
      result
    catch
      kind, reason ->
        finished = System.monotonic_time()
        stacktrace = Enum.map(__STACKTRACE__, &without_arguments/1)

        execute(
          event ++ [:exception],
          %{duration: finished - started, monotonic_time: finished},
          Map.merge(metadata, %{kind: kind, reason: name(kind, reason), stacktrace: stacktrace})
        )

        :erlang.raise(kind, reason, stacktrace)
    end
  end

  defp without_arguments({module, function, arguments, location}) when is_list(arguments),
    do: {module, function, length(arguments), location}

  defp without_arguments({function, arguments, location}) when is_list(arguments),
    do: {function, length(arguments), location}

  defp without_arguments(entry), do: entry

  defp name(:error, %module{}), do: module
  defp name(:error, reason) when is_atom(reason), do: reason

  defp name(:error, reason) when is_tuple(reason) and is_atom(elem(reason, 0)),
    do: elem(reason, 0)

  defp name(kind, _), do: kind

  @doc false
  # Runs `fun` and records it as a span that emit/1 reports after the commit.
  @spec record([atom], map, (() -> result), (result -> {map, map})) :: {result, recorded}
        when result: term
  def record(event, metadata, fun, describe) do
    started = System.monotonic_time()
    system_time = System.system_time()
    result = fun.()
    finished = System.monotonic_time()
    {measurements, more} = describe.(result)
    {result, {event, {started, system_time}, finished, measurements, metadata, more}}
  end

  @doc false
  # A span that was begun at a time, for emit/1, and ends now.
  @spec recorded([atom], map, {integer, integer}, map, map) :: recorded
  def recorded(event, metadata, started, measurements, more),
    do: {event, started, System.monotonic_time(), measurements, metadata, more}

  @doc false
  # Adds what was only known later.
  def measure({event, started, finished, measurements, metadata, more}, later),
    do: {event, started, finished, Map.merge(measurements, later), metadata, more}

  @doc false
  # The address a record is about.
  def owner({_, _, _, _, %{user_id: user, device_id: device}, _}), do: {user, device}

  @doc false
  @spec emit([recorded]) :: :ok
  def emit(records) do
    if available?(), do: Enum.each(records, &emit_one/1)
    :ok
  end

  defp emit_one({event, measurements, metadata}), do: execute(event, measurements, metadata)

  defp emit_one({event, {started, system_time}, finished, measurements, metadata, more}) do
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    start(event, started, system_time, metadata)
    stop(event, started, finished, measurements, Map.merge(metadata, more))
  end

  defp start(event, started, system_time, metadata) do
    execute(
      event ++ [:start],
      %{monotonic_time: started, system_time: system_time},
      metadata
    )
  end

  defp stop(event, started, finished, measurements, metadata) do
    measurements =
      Map.merge(measurements, %{duration: finished - started, monotonic_time: finished})

    execute(event ++ [:stop], measurements, metadata)
  end

  @doc false
  # The result part of :stop metadata.
  def outcome({:ok, _}), do: %{result: :ok, reason: nil}
  def outcome(:ok), do: %{result: :ok, reason: nil}
  def outcome({:error, %Error{reason: reason}}), do: %{result: :error, reason: reason}
  def outcome({:error, reason}) when is_atom(reason), do: %{result: :error, reason: reason}

  @doc false
  # Every result of the native library passes through here. Those of passwords and exports are of no instance.
  def watch({:error, :panic} = result, instance, function) do
    panic(instance, function)
    result
  end

  def watch({:ok, results} = result, instance, function) when is_list(results) do
    if Enum.any?(results, &(&1 == {:error, :panic})), do: panic(instance, function)
    result
  end

  def watch(result, _instance, _function), do: result

  @doc false
  def vault_error(vault, operation, reason) do
    execute(
      [:kith, :vault, :error],
      %{system_time: System.system_time(), count: 1},
      %{vault: vault, operation: operation, reason: reason}
    )
  end

  @doc false
  # How far the rows of a table are, and how it ended.
  def vault_migration(step, measurements, metadata),
    do: execute([:kith, :vault, :migrate, step], measurements, metadata)

  @doc false
  def panic(instance, function) do
    execute(
      [:kith, :nif, :panic],
      %{system_time: System.system_time(), count: 1},
      %{instance: instance && instance.name, function: function}
    )
  end

  defp execute(event, measurements, metadata) do
    # Optional, so no call that a compiler would look for.
    if available?(), do: apply(:telemetry, :execute, [event, measurements, metadata])
    :ok
  end
end
