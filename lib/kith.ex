defmodule Kith do
  @moduledoc """
  Signal's encryption for the messages of an Elixir or Phoenix application.

      defmodule MyApp.Kith do
        use Kith, otp_app: :my_app
      end

      # config/runtime.exs
      config :my_app, MyApp.Kith,
        database: "/var/lib/my_app/kith.db",
        keys: [current: {"2026-11", {:env, "KITH_KEY"}}]

      # the children of your supervisor
      children = [MyApp.Kith]

  Then, for people the application knows by any string:

      MyApp.Kith.register("anna")
      MyApp.Kith.register("ben")

      {:ok, [envelope]} = MyApp.Kith.encrypt("anna", "ben", "dinner at seven?")
      {:ok, "dinner at seven?"} = MyApp.Kith.decrypt("ben", envelope)

  `mix kith.gen.key` prints a key for `KITH_KEY`. All options are in `Kith.Options`.

  ## What it protects

  Every message has a key of its own that is deleted once it was used, and a session heals by itself one round
  trip after its state was stolen. What is recorded today cannot be read with a quantum computer later: sessions are
  of version 4 of Signal's protocol, unless `:minimum_version` allows less. Private keys and session states are sealed before they leave the native
  library; the database holds nothing that opens without a key-encryption key that is not in it.

  That protects people from whoever gets hold of the database, of a backup, of a replica or of the traffic.
  It does not protect them from whoever runs the live server: the keys of those who `register/3` are used on
  it, and the plaintext passes through it. For that, keys have to live in people's own
  devices; `publish_bundle/3` makes Kith the relay for such a user, and then only the sender's side is on the
  server. Who talks to whom, when and how much is visible to the server and in the database in any case.

  ## Addresses

  `"anna"` is device 1 of the user `"anna"`, `{"anna", 2}` her second device; see `Kith.Address`. Whoever may
  name an address decides on whose behalf is written and read: that is the application's authorization,
  and Kith does not ask for it.

  ## Results

  Functions return `{:ok, value}` or `{:error, %Kith.Error{reason: reason}}` with a reason of the closed set in
  `Kith.Error`; those that end in `!` return the value or raise. A wrong type of argument, or a name
  under which nothing runs, raises `ArgumentError`.

  A call is one transaction. What `encrypt/4` returns is durable: a message key is not used again after any
  crash. A call that fails changes nothing. Called inside a transaction of the same repository it joins it, and
  nothing it returned may leave before that transaction is committed.

  ## Message archive

  The envelope of a session opens once, and people reload pages. With `archive: true` (see `Kith.Options`) the plaintext
  is kept, in the transaction that encrypts or opens a message: `decrypt/4` then answers a second delivery of the same
  message as it did the first, and `history/4` pages through what a device has sent and received.

  A message is kept in a *thread*: a conversation, by the application's own id for it, or the direct thread of two
  users, `{:direct, user}` as one of them names it. All copies in a thread are sealed under its data key, which `shred/2` deletes.

  `encrypt/5`, `encrypt_group/5` and `decrypt/4` take options for it, which are checked and otherwise ignored where
  nothing is kept:

    * `:thread` - a string of 1 to 255 bytes of UTF-8 without a zero byte, or `{:direct, user}`. Default: the direct thread
      with the other user, which has no default in a group. No string names a direct thread, whatever is in it.
    * `:archive` - `false` keeps no copy on this side: for messages people do not read again, and for one that is sent
      a second time and is in the sender's history already. Default `true`.
    * `:expires_in` - seconds after which this copy disappears, from now on. The other sides decide for theirs. It does not
      outlive the retention of the instance.

  What another device of the same user has sent arrives in an envelope to this one, which does not say for whom it
  was: give `:thread` to `decrypt/4`, or it is kept in the user's thread with themselves.

  Each device has a history of its own. What disappeared is in neither the history nor the answer to a second delivery, from
  the moment its time is over, and is deleted soon after. Give both sides the same `:expires_in`: while the sender has a
  copy, a message whose copy here has disappeared may be reported by `recover/4` when it is delivered again, and sent again.

  Forward secrecy ends where the archive begins: a thief of the database *and* the key-encryption key reads what is
  kept, however long ago its message keys were deleted. A thief of the database alone reads nothing.

  With the archive, `{:ok, plaintext}` does not say that a message is new: whoever can send an old envelope again gets
  it opened again, and the event `[:kith, :archive, :redelivery]` says so. An application that acts on messages has to
  know which it has acted on.

  ## Names

  `use Kith` puts the functions below into a module without their first argument, which is the name of the
  instance: the module itself. Without it, start `{Kith, name: name, keys: ...}` and give the name. Any
  term is a name, and many instances run in one VM.
  """

  alias Kith.{
    AccountLock,
    Address,
    Doctor,
    Envelope,
    Error,
    Health,
    Installation,
    Instance,
    Maintenance,
    Message,
    MessageArchive,
    Messages,
    Options,
    Peers,
    PreKeyBundle,
    Recovery,
    Registration
  }

  @typedoc "The name of an instance."
  @type name :: term

  @typedoc "A conversation: the application's id of it, or the direct thread of two users as one of them names it."
  @type thread :: String.t() | {:direct, Address.user()}

  @typedoc "What a call says of its copy in the archive."
  @type option :: {:thread, thread} | {:expires_in, pos_integer} | {:archive, boolean}

  @type result(value) :: {:ok, value} | {:error, Error.t()}

  @typedoc "What is public of a registered device."
  @type registered :: %{
          user: Address.user(),
          device: Address.device(),
          registration_id: non_neg_integer,
          identity_key: <<_::264>>
        }

  @delegates [
    register: [:user],
    register: [:user, :options],
    unregister: [:address],
    replenish: [:address],
    maintain: [],
    prekey_count: [:address],
    kyber_prekey_count: [:address],
    pre_key_bundle: [:address],
    publish_bundle: [:address, :bundle],
    encrypt: [:from, :to, :plaintext],
    encrypt: [:from, :to, :plaintext, :options],
    encrypt_group: [:from, :members, :plaintext],
    encrypt_group: [:from, :members, :plaintext, :options],
    decrypt: [:to, :envelope],
    decrypt: [:to, :envelope, :options],
    recover: [:to, :envelope, :error],
    resend: [:to, :report],
    doctor: [],
    doctor: [:to, :envelope],
    health: [],
    health: [:options],
    history: [:address, :thread],
    history: [:address, :thread, :options],
    shred: [:thread],
    identity: [:address, :other],
    safety_number: [:address, :other],
    safety_number_matches: [:address, :other, :scanned],
    trust: [:address, :peer],
    trust: [:address, :peer, :options],
    reset_session: [:address, :peer],
    import_record: [:address, :peer, :record],
    session_info: [:address, :peer],
    delete: [:address, :peer],
    restored: [],
    lock_with_password: [:user, :password],
    lock_with_password: [:user, :password, :options],
    unlock: [:user, :password],
    unlock: [:user, :password, :options],
    lock: [:user],
    lock: [:user, :options],
    lock_state: [:user],
    change_password: [:user, :password, :new],
    change_password: [:user, :password, :new, :options],
    remove_password: [:user, :password],
    unlock_token: [:user],
    unlock_token: [:user, :options],
    unlock_with_token: [:user, :token],
    unlock_with_token: [:user, :token, :options],
    revoke_token: [:user, :token],
    rotate_data_key: [:user],
    rotate_thread_key: [:thread],
    rotate_keys: [],
    rotate_keys: [:options],
    verify_keys: [],
    verify_keys: [:options],
    open_keys: [:users],
    open_keys: [:users, :threads]
  ]

  defmacro __using__(options) do
    delegates =
      for {function, arguments} <- @delegates, name <- [function, :"#{function}!"] do
        arguments = Enum.map(arguments, &Macro.var(&1, __MODULE__))

        quote do
          @doc "Calls `Kith.#{unquote(name)}/#{unquote(length(arguments) + 1)}` for this instance."
          def unquote(name)(unquote_splicing(arguments)),
            do: Kith.unquote(name)(__MODULE__, unquote_splicing(arguments))
        end
      end

    quote do
      @kith_options unquote(options)

      @doc "Returns the child specification of this instance. See `Kith.Options`."
      def child_spec(options),
        do: %{
          id: __MODULE__,
          start: {__MODULE__, :start_link, [Kith.Options.veil(options)]},
          type: :supervisor
        }

      @doc "Starts this instance. Its options are those of `use Kith`, of the application and these."
      def start_link(options \\ []),
        do: Kith.start_link(Kith.Options.merge(__MODULE__, @kith_options, options))

      @doc false
      def __kith__(:options), do: Kith.Options.merge(__MODULE__, @kith_options, [])

      unquote_splicing(delegates)

      @doc "Calls `Kith.database/1` for this instance."
      def database, do: Kith.database(__MODULE__)

      @doc "Calls `Kith.requires_encryption?/1`."
      defdelegate requires_encryption?(kind), to: Kith
    end
  end

  @doc "Returns the child specification of an instance. Takes the options of `Kith.Options`."
  @spec child_spec(keyword) :: Supervisor.child_spec()
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name, Kith),
      start: {__MODULE__, :start_link, [Options.veil(options)]},
      type: :supervisor
    }
  end

  @doc """
  Starts an instance. Takes the options of `Kith.Options`.

  Raises `ArgumentError` for options that are wrong and for keys that cannot be read.
  """
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(options), do: Kith.Supervisor.start_link(options)

  @doc """
  Gives a device its keys: an identity key, a signed prekey, a Kyber prekey of last resort, and one-time prekeys of
  both kinds (100 and 20, unless `:one_time_prekeys` and `:one_time_kyber_prekeys` say otherwise).

  A device that has keys keeps them, so it may be called at every login.

    * `:device` - another device than 1, where a user and not an address is given.
    * `:identity_key_pair` - for an application that moves to Kith: the identity key pair the device has, as Signal's
      own library serializes it. `import_record/4` then takes over its sessions.
    * `:registration_id` - the registration id that goes with it. Default: a random one.

  With `:identity_key_pair` a private key is an Elixir binary, and stays one in the memory of the VM until it is
  collected. This call and `import_record/4` are the only ones of which that is true. Neither prints it, and neither
  should the application.

  All devices of a user have one identity key: another device than the first gets that of the first.

  Errors: `:key_not_found` when the private keys of this device live elsewhere (`publish_bundle/3`), `:malformed` for
  bytes that are no key pair, `:untrusted_identity` when the device, or another one of the user, has another pair already,
  `:too_large` for one more than `:max_devices`.
  """
  @spec register(name, Address.given(), keyword) :: result(registered)
  def register(name, user, options \\ []) do
    options = options!(options, [:device, :identity_key_pair, :registration_id])
    {pair, id} = {options[:identity_key_pair], options[:registration_id]}

    # What is given in its place may well be a key.
    if not (pair == nil or is_binary(pair)),
      do: raise(ArgumentError, "expected :identity_key_pair to be a binary")

    if not (id == nil or (is_integer(id) and id in 0..0xFFFFFFFF)),
      do: raise(ArgumentError, "expected :registration_id to be an integer of 32 bits")

    given = %{identity_key_pair: pair, registration_id: id}
    Registration.register(Instance.fetch!(name), device(user, options[:device]), given)
  end

  @doc """
  Deletes the keys and the sessions of a device, for ever. With the last device of a user the user's notes to
  themselves can no longer be opened by anyone.

  Errors: `:not_registered`.
  """
  @spec unregister(name, Address.given()) :: result(:unregistered)
  def unregister(name, address),
    do: Registration.unregister(Instance.fetch!(name), Address.new!(address))

  @doc """
  Makes one-time prekeys until a device has `:one_time_prekeys` and `:one_time_kyber_prekeys` again. Returns how many
  of the former were made.

  It runs by itself when a claim leaves fewer than `:replenish_below`.

  Errors: `:not_registered`, `:key_not_found`.
  """
  @spec replenish(name, Address.given()) :: result(non_neg_integer)
  def replenish(name, address),
    do: Registration.replenish(Instance.fetch!(name), Address.new!(address))

  @doc """
  Returns how many one-time prekeys a device can still hand out.

  Errors: `:not_registered`.
  """
  @spec prekey_count(name, Address.given()) :: result(non_neg_integer)
  def prekey_count(name, address),
    do: Registration.prekey_count(Instance.fetch!(name), Address.new!(address), :one_time)

  @doc """
  Returns how many one-time Kyber prekeys a device can still hand out. The one of last resort does not count.

  Errors: `:not_registered`.
  """
  @spec kyber_prekey_count(name, Address.given()) :: result(non_neg_integer)
  def kyber_prekey_count(name, address),
    do: Registration.prekey_count(Instance.fetch!(name), Address.new!(address), :kyber_one_time)

  @doc """
  Makes a pass of maintenance now, and returns what it did when it is over.

  An instance makes one about every hour by itself, see `:maintenance_interval` in `Kith.Options`. An application that has
  jobs of its own may turn that off and call this. A pass

    * fills the stock of one-time prekeys of devices that have few left (`replenished` devices);
    * replaces signed prekeys and Kyber prekeys of last resort that are too old (`rotated` devices);
    * deletes one-time prekeys that were used, or can be used by nobody any more (`prekeys`), the `signed_prekeys` and Kyber
      prekeys of last resort that were replaced before the grace period, with the `base_keys` remembered of them, the
      `skipped_keys` of messages that never came, old counts of `recoveries`, and expired `messages` of the archive;
    * puts `sessions` away in which nobody answers;
    * empties the write-ahead log of the embedded database after it has deleted something.

  What another node is doing at the moment is left to it. `failed` counts devices and sessions that got an error, each with a line
  in the log; they do not keep the others from being done. A task that fails as a whole makes the call fail with the error, and
  the other tasks are done nevertheless; the next pass tries again.

  Raises inside a transaction, for which the pass would wait. Errors: `:storage`, `:stale`, `:panic`.
  """
  @spec maintain(name) :: result(%{atom => non_neg_integer})
  def maintain(name), do: Maintenance.run(Instance.fetch!(name))

  @doc """
  Hands out the public keys with which a client of its own starts a session with a device.

  Each one-time prekey is handed out once. When none is left the bundle has none, which the protocol allows, and the
  Kyber prekey of last resort. `encrypt/4` does this by itself. Errors: `:not_registered`.
  """
  @spec pre_key_bundle(name, Address.given()) :: result(PreKeyBundle.t())
  def pre_key_bundle(name, address),
    do: Registration.bundle(Instance.fetch!(name), Address.new!(address))

  @doc """
  Publishes the public keys of a device whose private keys live elsewhere, for example in a Signal client.

  Takes a `Kith.PreKeyBundle` or a map of its fields, with any number of one-time prekeys in `:prekeys` and
  `:kyber_prekeys`; `:kyber_prekey` is the one of last resort. Others can then `encrypt/4` to that device. To publish
  again adds one-time prekeys and replaces the signed prekey and the Kyber prekey of last resort. With another identity key it also ends the sessions others have with the device: their next message is refused with
  `:untrusted_identity` until they `trust/4` the new key. Returns the stock of one-time prekeys.

  A bundle without a Kyber prekey is one of version 3, for which an instance with `minimum_version: 3` has room.

  Whose bundle it is, the application has to know. Errors: `:malformed`, `:tampered` for a wrong signature,
  `:unsupported_version` for a bundle without a Kyber prekey, `:too_large` over 1,000 one-time prekeys of a kind or one
  more than `:max_devices`, `:untrusted_identity` for a device that was registered here, or one whose user has another
  identity on another device.
  """
  @spec publish_bundle(name, Address.given(), PreKeyBundle.t() | map) :: result(non_neg_integer)
  def publish_bundle(name, address, bundle) do
    instance = Instance.fetch!(name)
    Registration.publish(instance, Address.new!(address), fields!(bundle))
  end

  @doc """
  Encrypts bytes for someone and returns the `Kith.Envelope`s to deliver: one for each of their devices, and one for each
  other device of the sender, which so has what was sent.

      {:ok, envelopes} = MyApp.Kith.encrypt("anna", "ben", "dinner at seven?")
      for envelope <- envelopes, do: deliver(envelope.to, envelope)

  To `{user, device}` it makes one, for that device alone. A session is established with the first message. To oneself
  it makes one note, sealed with the account's key, that opens any number of times and on each of one's devices.

  The envelope of a session opens once. Store or send it as it is: encrypting again makes another message.

  All devices of the recipient are served or none, and an error is that of the first that cannot be; `encrypt_group/4`
  answers for each. A device of the sender's own that cannot be served is left out. A state that does not open is `:corrupted_state` once: the next message starts a new session.

  Takes the options of "Message archive" above, for the sender's own copy.

  Errors: `:not_registered` for either side, `:key_not_found` when the sender's private keys live
  elsewhere, `:untrusted_identity`, `:unsupported_version` when the peer has no Kyber prekey and must have one,
  `:too_large`, and those of the machinery: `:corrupted_state`, `:stale`,
  `:storage`, `:unavailable` with a key service, `:panic`.
  """
  @spec encrypt(name, Address.given(), Address.given(), binary, [option]) ::
          result([Envelope.t()])
  def encrypt(name, from, to, plaintext, options \\ []) do
    {from, to} = {Address.new!(from), Address.recipient!(to)}
    options = copy_options!(options)
    Messages.encrypt(Instance.fetch!(name), from, to, plaintext!(plaintext), options)
  end

  @doc """
  Encrypts bytes for each member of a group, pairwise, in one native call and one transaction.

  Returns `{address, {:ok, envelope} | {:error, error}}` for each device of each member, in the order of the members,
  and then for each other device of the sender. One device that cannot be served fails alone: a member without keys is
  their device 1 with `:not_registered`. The sending device is left out, and a device named twice is
  served once. A member given as `{user, device}` is that device alone. At most 1,000 devices.

      {:ok, results} = MyApp.Kith.encrypt_group("anna", ["anna", "ben", "cleo"], "hello")
      for {address, {:ok, envelope}} <- results, do: deliver(address, envelope)

  Takes the options of "Message archive" above, for the sender's own copy: one for all members. Where messages are kept,
  a call without `:thread` raises `ArgumentError`.

  The call itself fails with `:not_registered` or `:key_not_found` for the sender, with `:too_large`, and with
  those of the machinery; then no envelope exists.
  """
  @spec encrypt_group(name, Address.given(), [Address.given()], binary, [option]) ::
          result([{Address.t(), result(Envelope.t())}])
  def encrypt_group(name, from, members, plaintext, options \\ []) do
    instance = Instance.fetch!(name)

    if not is_list(members),
      do: raise(ArgumentError, "expected a list of members")

    {from, members} = {Address.new!(from), Enum.map(members, &Address.recipient!/1)}
    options = copy_options!(options)
    Messages.encrypt_group(instance, from, members, plaintext!(plaintext), options)
  end

  @doc """
  Opens an envelope, or its binary form, that is addressed to a device, or to any device of a user.

  A message opens once. A failed call changes nothing: the envelope can be tried again, and `recover/4` heals what
  can be healed.

  Takes the options of "Message archive" above. Where messages are kept, a message opens again as long as its copy is
  there, on the device that opened it and under the thread it was opened in, whatever has become of the session.

  Errors: `:duplicate`, `:tampered`, `:session_not_found`, `:out_of_sync`, `:key_not_found`,
  `:untrusted_identity`, `:unknown_prekey`, `:malformed` (also when it is addressed to another device),
  `:unsupported_version`, `:not_registered`, and those of the machinery: `:corrupted_state`, `:stale`, `:storage`,
  `:unavailable` with a key service, after which the same envelope opens later, `:panic`.
  """
  @spec decrypt(name, Address.given(), Envelope.t() | binary, [option]) :: result(binary)
  def decrypt(name, to, envelope, options \\ []) do
    options = copy_options!(options)
    Messages.decrypt(Instance.fetch!(name), Address.recipient!(to), envelope, options)
  end

  @doc """
  Heals what can be healed after `decrypt/4` failed, and returns the envelopes to deliver: a report, or none.

      with {:error, error} <- MyApp.Kith.decrypt("ben", envelope),
           {:ok, reports} <- MyApp.Kith.recover("ben", envelope, error),
           do: for(report <- reports, do: deliver(report.to, report))

  A report is Signal's decryption-error message: it tells the sender's device which message did not open, by its
  timestamp and ratchet key. There, `resend/3` starts a new session and sends the message again.

  | error | what is done here |
  | --- | --- |
  | `:session_not_found`, `:unknown_prekey` | reported |
  | `:tampered`, `:out_of_sync` | reported; the own session may be an older one than the sender's, so the next message to them starts a new one |
  | `:corrupted_state` | the same, and a session that does not open is put away |
  | `:duplicate` | nothing. With `:archive`, whose answer to a second delivery is the message itself, this one was never seen and its key is used: reported |
  | all others | the error is returned: people (`:untrusted_identity`) or operators have to act |

  At most `:recovery_limit` messages of one peer are reported in an hour; after that the list is empty. Errors besides
  the one that was given: `:not_registered`, `:malformed` for an envelope that is none or another device's, and those of
  the machinery.
  """
  @spec recover(name, Address.given(), Envelope.t() | binary, Error.t()) :: result([Envelope.t()])
  def recover(name, to, envelope, %Error{} = error) do
    instance = Instance.fetch!(name)

    with {:ok, to, envelope} <- Messages.addressed(Address.recipient!(to), envelope),
         do: Recovery.recover(instance, to, envelope, error)
  end

  @doc """
  Answers a report: an envelope of the type `:report`, which says that a message of this device did not open.

  When it was sent in the session there is now, the next message to the peer starts a new one (`:renewed`). Where
  `:archive` has the message and it is not older than `:resend_window`, it is encrypted again for the device that
  reported it, if it was one of its recipients: `:envelopes` are to be delivered. They have the timestamp of the message,
  and so has the archive of the recipient. Where the list is empty the application, which knows the message by
  `:timestamp`, may send it again itself.

  A report proves nothing about who made it. It cannot cause more than new sessions and messages to those they were for,
  `:recovery_limit` times an hour for each peer; after that nothing is done.

  Errors: `:malformed` for what is no report to this device, those of `encrypt/5`.
  """
  @spec resend(name, Address.given(), Envelope.t() | binary) ::
          result(%{timestamp: non_neg_integer, renewed: boolean, envelopes: [Envelope.t()]})
  def resend(name, to, report) do
    instance = Instance.fetch!(name)

    with {:ok, to, report} <- Messages.addressed(Address.recipient!(to), report),
         do: Recovery.resend(instance, to, report)
  end

  @doc """
  Looks whether the tables are those of this release, the data keys of all accounts open, sessions wait to start anew,
  and devices run low on prekeys.

  Returns `{check, :ok | :warning | :error, sentence}` each; `mix kith.doctor` prints them. It reads all accounts, a hundred
  at a time.

  Errors: those of the machinery.
  """
  @spec doctor(name) :: result([{atom, :ok | :warning | :error, String.t()}])
  def doctor(name), do: Doctor.instance(Instance.fetch!(name))

  @doc """
  Explains why an envelope does not open on a device, without opening it for good: nothing is written.

  Returns a map of `:opens`, `:reason` (the one `decrypt/4` would give, but for what the archive answers), an `:explanation` in
  sentences, and `:facts`: what of the message can be seen, the state of the session, which chain its ratchet key
  belongs to (`:current`, `:archived`, `:own`, `:unknown`), whether its key is kept, what has become of the prekeys it names, and whose
  identity it claims. There is no secret and no text in it.

  Errors: `:malformed` for what is no envelope, and those of the machinery.
  """
  @spec doctor(name, Address.given(), Envelope.t() | binary) ::
          result(%{
            opens: boolean,
            reason: nil | Error.reason(),
            explanation: String.t(),
            facts: map
          })
  def doctor(name, to, envelope) do
    instance = Instance.fetch!(name)

    with {:ok, to, envelope} <- Messages.addressed(Address.recipient!(to), envelope),
         do: Doctor.message(instance, to, envelope)
  end

  @doc """
  Asks whether the two things every call needs do their work.

      {:ok, %{store: :ok, vault: :ok}} = MyApp.Kith.health()

  `:store` is whether the database answers a small transaction on Kith's tables within `:timeout`, waiting for a connection
  included. `:vault` is whether a data key that is made now opens, and the one of an account, if there is an account: one
  of them, `doctor/1` looks at all. Each is `:ok` or a reason of `Kith.Error`: `:storage` for a database that fails or
  does not answer in time, `:key_not_found` or `:corrupted_state` for a data key that does not open with the keys in
  `:keys`, `:unavailable` for a key service that does not answer, even while what it has opened still works. `:store_latency` and `:vault_latency` are how long it took, in native units.

  What is wrong is in the answer, not an error. Nothing is written. The event `[:kith, :health, :check]` says the same, and
  `Kith.Monitor` asks by itself every half minute.

    * `:timeout` - milliseconds, 1 to 60,000. Default 5,000.

  Raises inside a transaction, for which the question would wait. Errors: none.
  """
  @spec health(name, timeout: 1..60_000) ::
          result(%{
            store: :ok | Error.reason(),
            store_latency: non_neg_integer,
            vault: :ok | Error.reason(),
            vault_latency: non_neg_integer
          })
  def health(name, options \\ []) do
    timeout = Keyword.validate!(options, timeout: 5_000)[:timeout]

    if timeout not in 1..60_000,
      do: raise(ArgumentError, "expected :timeout to be an integer from 1 to 60000")

    Health.check(Instance.fetch!(name), timeout)
  end

  @doc """
  Returns a page of what a device has sent and received in a thread, of what the archive keeps.

      {:ok, page} = MyApp.Kith.history("anna", {:direct, "ben"})
      for message <- page.messages, do: {message.from, message.plaintext}
      {:ok, earlier} = MyApp.Kith.history("anna", {:direct, "ben"}, before: page.before)

  The first page has the newest messages, and each page its oldest message first: as they stand on a screen, to which
  one scrolls up adds a page at the top. `:before` of a page is the cursor of the one before it, `nil` when there is
  none. A cursor stays good while messages come and go. It is a string of 34 characters that may go
  through a client; it opens nothing.

    * `:limit` - how many messages, 1 to 1,000. Default 50. A page also ends before its messages exceed 8 MiB.
    * `:before` - a cursor.

  The thread is one of `encrypt/5` and `decrypt/4`; nothing was ever kept in one that is unknown, and its page is empty. Whether
  `:archive` is on does not matter. A message whose row does not open is in its place, with `:error` in `Kith.Message`.

  Errors: `:not_registered`, `:malformed` for a string that is no cursor, `:key_not_found` when the data key of the
  thread, or the key-encryption key that wraps it, is not here, `:corrupted_state` when the data key does not open, and those of the machinery.
  """
  @spec history(name, Address.given(), thread, limit: 1..1000, before: nil | String.t()) ::
          result(%{messages: [Message.t()], before: nil | String.t()})
  def history(name, address, thread, options \\ []) do
    options = Keyword.validate!(options, limit: 50, before: nil)

    if options[:limit] not in 1..1_000,
      do: raise(ArgumentError, "expected :limit to be an integer from 1 to 1000")

    if not (options[:before] == nil or is_binary(options[:before])),
      do: raise(ArgumentError, "expected :before to be a cursor, a string")

    instance = Instance.fetch!(name)
    MessageArchive.history(instance, Address.new!(address), thread!(thread), options)
  end

  @doc """
  Shreds a thread: deletes its data key and all copies in it, of every user and device, for ever. Returns how many.

  The direct thread of two users is `{:direct, user, other}`. Shredding what is not there is `{:ok, 0}`. Whoever goes on
  to write in the thread begins it anew, with another key: an old row that is put back from a backup does not open.

  What remains: sessions, the traffic, and whatever the application stored itself. A backup of the database from before has
  the thread's key, and opens together with a key-encryption key that was in use then. With the embedded database the freed bytes are overwritten and
  the write-ahead log is emptied; if another program keeps it from that, the answer is `:storage`, nothing of the thread
  can be read through Kith any more, and calling again tries the log again. In a transaction of the application the log
  is not emptied. PostgreSQL keeps deleted rows until it vacuums, and its log as long as it is told to.

  Errors: those of the machinery.
  """
  @spec shred(name, String.t() | {:direct, Address.user(), Address.user()}) ::
          result(non_neg_integer)
  def shred(name, thread), do: MessageArchive.shred(Instance.fetch!(name), shared!(thread))

  # A thread as nobody's.
  defp shared!({:direct, user, other}), do: {:direct, user!(user), user!(other)}
  defp shared!(thread) when is_binary(thread), do: thread!(thread)
  defp shared!(_), do: raise(ArgumentError, "expected a thread or {:direct, user, other}")

  @doc """
  Says what a device makes of the identity of another, as `safety_number/3` does, without the number: for lists of people:
  it does without the thousands of hashes a number takes.

  Errors: `:not_registered`, `:corrupted_state`.
  """
  @spec identity(name, Address.given(), Address.given()) ::
          result(%{identity: :remembered | :changed | :unknown, verified: boolean})
  def identity(name, address, other),
    do: Peers.identity(Instance.fetch!(name), Address.new!(address), Address.recipient!(other))

  @doc """
  Returns the number two people compare, aloud or by scanning, to know that nobody sits between them.

  `:digits` are 60 digits, the same for both sides. `:scannable` are the bytes of a code in the form of Signal's,
  over the user ids as Kith knows them. Both are of the identity keys that are registered or published now.

  `:identity` says what the device makes of the other's key: it is the one `:remembered`; the key has
  `:changed`, and the number is that of the new one, which `trust/4` would accept; or the other is `:unknown` to it.
  `:verified` says whether people have compared the number of the remembered one, as `trust/4` was told.

  Errors: `:not_registered`, `:corrupted_state`.
  """
  @spec safety_number(name, Address.given(), Address.given()) ::
          result(%{
            digits: String.t(),
            scannable: binary,
            identity: :remembered | :changed | :unknown,
            verified: boolean
          })
  def safety_number(name, address, other),
    do:
      Peers.safety_number(
        Instance.fetch!(name),
        Address.new!(address),
        Address.recipient!(other)
      )

  @doc """
  Tells whether the bytes scanned from the other person's screen show the same two identity keys.

  Errors: `:not_registered`, `:malformed` for bytes that are no such code, `:unsupported_version`.
  """
  @spec safety_number_matches(name, Address.given(), Address.given(), binary) :: result(boolean)
  def safety_number_matches(name, address, other, scanned) do
    if not is_binary(scanned),
      do: raise(ArgumentError, "expected the scanned code to be a binary")

    instance = Instance.fetch!(name)
    {address, other} = {Address.new!(address), Address.recipient!(other)}
    Peers.safety_number_matches(instance, address, other, scanned)
  end

  @doc """
  Makes a device remember the identity key of a peer, in place of another one it may have remembered.

  The first identity key seen of a peer is remembered by itself: the one that peer has registered or published, or
  for a peer without keys here the one in their first message. Call this after `:untrusted_identity`, once the people
  have compared their `safety_number/3`. A session with the identity of before is ended. A peer seen with version 4 of
  the protocol is held to it under the new key too.

    * `:identity_key` - the 33 bytes to trust. Default: the key the peer has registered or published.
    * `:verified` - `true` when the number was compared. Default `false`. `session_info/3` shows it.

  Errors: `:not_registered`, `:key_not_found`.
  """
  @spec trust(name, Address.given(), Address.given(), keyword) :: result(:trusted)
  def trust(name, address, peer, options \\ []) do
    options = Keyword.validate!(options, identity_key: nil, verified: false)

    if not (options[:identity_key] == nil or match?(<<5, _::binary-32>>, options[:identity_key])),
      do: raise(ArgumentError, "expected :identity_key to be 33 bytes that begin with 5")

    if not is_boolean(options[:verified]),
      do:
        raise(
          ArgumentError,
          "expected :verified to be a boolean, got: #{inspect(options[:verified])}"
        )

    Peers.trust(Instance.fetch!(name), Address.new!(address), Address.recipient!(peer), options)
  end

  @doc """
  Puts the session of a device with a peer away: the next message establishes a new one.

  The identity of the peer stays remembered, and messages of the old session that are still on their way
  open. Errors: `:session_not_found`, `:not_registered`, `:key_not_found`.
  """
  @spec reset_session(name, Address.given(), Address.given()) :: result(:reset)
  def reset_session(name, address, peer),
    do: Peers.reset(Instance.fetch!(name), Address.new!(address), Address.recipient!(peer))

  @doc """
  Takes over the sessions of a device with a peer from a record of Signal's own library.

  For an application that moves to Kith, after `register/3` with `:identity_key_pair`. All of the record is taken or
  nothing: the current session, the archived ones, and the keys of messages still on their way. A session that is here
  already is put away, as by `reset_session/3`. The identity key of the peer is remembered, if none is.

  From then on only Kith may use these sessions: a record is a moment in them, and whoever goes on from it twice uses
  a message key twice. The record is the secrets of its sessions, as an Elixir binary; see `register/3`.

  Errors: `:malformed` for bytes that are no record, or one of another device; `:unsupported_version`;
  `:untrusted_identity` when another key is remembered of the peer, or registered or published for them;
  `:duplicate` when a session of the record is here already; `:not_registered`, `:key_not_found`.
  """
  @spec import_record(name, Address.given(), Address.given(), binary) :: result(:imported)
  def import_record(name, address, peer, record) do
    # What is given in its place may well be a secret.
    if not is_binary(record), do: raise(ArgumentError, "expected the record to be a binary")
    instance = Instance.fetch!(name)
    Peers.import_record(instance, Address.new!(address), Address.new!(peer), record)
  end

  @doc """
  Returns what can be told of a session without its secrets, as a map.

    * `:identity_key` - the remembered identity key of the peer; `:verified` whether it was compared, see `trust/4`; and
      `:highest_version`, the highest version of the protocol seen of them.
    * `:generation` - how often the row of the session was written.
    * `:current` - the session that is used to send, `:archived` a list of those that only open what is on its way:
      * `:session_id`, `:version`, and the `:registration_id` the peer has named;
      * `:acknowledged` - whether the peer was heard in it; `:usable` whether it may send: one that is older than 30
        days and was never answered may not;
      * `:sending` - the chain that makes the keys of sent messages, and `:receiving`, those that open received ones, the
        newest last. Each has the public `:ratchet_key` that names it, the `:index` of its next message, and how many
        keys of `:skipped` messages are kept;
      * `:braid` - the post-quantum ratchet: the `:epoch` it works on and its `:state`; `nil` in version 3.

  Errors: `:session_not_found`, `:not_registered`, `:key_not_found`, `:corrupted_state`.
  """
  @spec session_info(name, Address.given(), Address.given()) :: result(map)
  def session_info(name, address, peer),
    do: Peers.session_info(Instance.fetch!(name), Address.new!(address), Address.new!(peer))

  @doc """
  Makes a device forget a peer: the session and the remembered identity.

  The next identity key seen of that peer is trusted as the first one was, and any version from `:minimum_version` on is
  accepted of them. Errors: `:session_not_found`,
  `:not_registered`, `:key_not_found`.
  """
  @spec delete(name, Address.given(), Address.given()) :: result(:deleted)
  def delete(name, address, peer),
    do: Peers.delete(Instance.fetch!(name), Address.new!(address), Address.recipient!(peer))

  @doc """
  Says that the database was restored from a backup, and may be older than messages that were sent from it.

  A ratchet that goes on from an older state uses message keys a second time. So the next message in every session
  starts a new one, and one-time prekeys that may have been handed out meanwhile are not handed out again. Messages on
  their way still open where their keys are there. Returns how many sessions are concerned.

  It happens by itself where an older database is recognized when an instance starts, or PostgreSQL is failed over to
  another server; the guide to backups says where that is.
  """
  @spec restored(name) :: result(%{sessions: non_neg_integer})
  def restored(name), do: Installation.restored(Instance.fetch!(name))

  @doc """
  Locks the account of a user under a password: from then on neither the database nor the keys of the server open it at rest.

      {:ok, _} = MyApp.Kith.lock_with_password("anna", password)
      {:ok, _} = MyApp.Kith.unlock("anna", password)   # at each login
      {:ok, :locked} = MyApp.Kith.lock("anna")         # at each logout

  The account gets a new data key, which is sealed under a key that Argon2id makes of the password, and that under the
  key-encryption key. All that belongs to the user is sealed anew: keys, sessions, and their part of the archive. Afterwards it
  is unlocked, as by `unlock/4`.

  While it is locked, calls that need its keys are `:locked`: `encrypt/5`, `decrypt/4`, `history/4` and the rest. Not those that only
  delete, `delete/3` and `unregister/2`: ask who calls them. Nothing is lost: keep an envelope that comes, and open it after the next `unlock/4`. Others write to the user as before.
  While it is unlocked, the server can read what the user can. A password that is forgotten is lost, with all that it locks.

    * `:for` - seconds it stays unlocked. Default: `:unlocked_for` of the instance.
    * `:memory`, `:passes`, `:parallelism` - what a try costs, as in `Kith.Password`.

  Returns how many rows were `:resealed`, how many did not open and were left as they are (`:refused`), `:unlocked_until`, and `:archive`:
  `:done`, or `:pending` when the account is locked but something kept its archive from following. Then `unlock/4` goes on with it, and until it has,
  those messages open with the keys of the server. Errors: `:locked` for an account that has a password, `:not_registered`, `:malformed` and `:too_large` for a password that
  is empty or has more than 1,024 bytes, `:busy`, `:stale` when somebody changed the account meanwhile, and those of the machinery.
  """
  @spec lock_with_password(name, Address.user(), binary, keyword) :: result(map)
  def lock_with_password(name, user, password, options \\ []) do
    options = lock_options!(options, [:for | Kith.Password.cost_options()])
    AccountLock.lock_with_password(Instance.fetch!(name), user!(user), secret!(password), options)
  end

  @doc """
  Unlocks the account of a user on this node, until the time is over or `lock/3` is called. Returns until when, in milliseconds since
  1970.

  Unlocking it again lengthens the time. A password that was hashed with less memory or fewer passes than `Kith.Password` is configured with
  now, and not with more of the other, is hashed anew. Takes `:for`. One-time prekeys that could not be made meanwhile are made.

  Errors: `:wrong_password`, which takes as long as the right one; `:busy` when too many are tried at once;
  `:key_not_found` for an account that has no password, which is no success: a login that asks this alone must not take it for one;
  `:not_registered`, and those of the machinery.
  """
  @spec unlock(name, Address.user(), binary, keyword) :: result(non_neg_integer)
  def unlock(name, user, password, options \\ []) do
    options = lock_options!(options, [:for])
    AccountLock.unlock(Instance.fetch!(name), user!(user), secret!(password), options)
  end

  @doc """
  Locks the account of a user again, on every node: the key is erased, and what is under way on another node ends with it.

  Its tokens unlock nothing any more, unless `keep_tokens: true` is given: for a time without use, after which the
  browser may come back. Errors: `:key_not_found` for an account that has no password, `:not_registered`.
  """
  @spec lock(name, Address.user(), keyword) :: result(:locked)
  def lock(name, user, options \\ []) do
    options = lock_options!(options, [:keep_tokens])
    AccountLock.lock(Instance.fetch!(name), user!(user), options)
  end

  @doc """
  Says how an account is: `:open` without a password, `:locked`, or `{:unlocked, until}` on this node.

  Errors: `:not_registered`.
  """
  @spec lock_state(name, Address.user()) :: result(:open | :locked | {:unlocked, non_neg_integer})
  def lock_state(name, user), do: AccountLock.state(Instance.fetch!(name), user!(user))

  @doc """
  Gives a locked account another password. Tokens end, and it is unlocked afterwards.

  Takes the options of `lock_with_password/4`, and `:reseal`. Without it the data key stays, and sessions are not sealed anew: whoever has a
  backup of before, the password of then and the keys of the server opens with them what is written later too. With `reseal: true`
  the account gets another data key, with the `:cipher` of the instance, and everything is sealed anew under it, as
  `lock_with_password/4` does it. Errors: those of `unlock/4`, and of `lock_with_password/4` for the new one.
  """
  @spec change_password(name, Address.user(), binary, binary, keyword) :: result(map)
  def change_password(name, user, password, new, options \\ []) do
    options = lock_options!(options, [:for, :reseal | Kith.Password.cost_options()])
    {password, new} = {secret!(password), secret!(new)}
    AccountLock.change_password(Instance.fetch!(name), user!(user), password, new, options)
  end

  @doc "Gives up the password of an account: it opens with the keys of the server again. Errors: those of `unlock/4`."
  @spec remove_password(name, Address.user(), binary) :: result(map)
  def remove_password(name, user, password),
    do: AccountLock.remove_password(Instance.fetch!(name), user!(user), secret!(password))

  @doc """
  Returns a token that unlocks the account without the password, for the encrypted cookie of a browser.

  It holds the data key, sealed under the key-encryption key: whoever has the token *and* the keys of the server opens the
  account. So do not keep it where the server is. It is text of some 150 characters, good for `:for` seconds (default
  1,209,600: 14 days) and until `lock/3`, `revoke_token/3` or another password. Errors: `:locked`, `:key_not_found`, `:not_registered`.
  """
  @spec unlock_token(name, Address.user(), keyword) :: result(String.t())
  def unlock_token(name, user, options \\ []) do
    options = lock_options!(options, [:for])
    seconds = Keyword.get(options, :for, 1_209_600)
    AccountLock.token(Instance.fetch!(name), user!(user), seconds)
  end

  @doc """
  Unlocks an account with a token, as `unlock/4` does with a password, and not longer than the token is good.

  Errors: `:wrong_password` for a token that is over, revoked, or another user's; `:malformed` for what is none.
  """
  @spec unlock_with_token(name, Address.user(), String.t(), keyword) :: result(non_neg_integer)
  def unlock_with_token(name, user, token, options \\ []) do
    options = lock_options!(options, [:for])
    AccountLock.unlock_with_token(Instance.fetch!(name), user!(user), secret!(token), options)
  end

  @doc "Makes a token of a user, or `:all` of them, unlock nothing any more. Returns how many there were."
  @spec revoke_token(name, Address.user(), String.t() | :all) :: result(non_neg_integer)
  def revoke_token(name, user, :all),
    do: AccountLock.revoke(Instance.fetch!(name), user!(user), :all)

  def revoke_token(name, user, token),
    do: AccountLock.revoke(Instance.fetch!(name), user!(user), secret!(token))

  @doc """
  Gives the account of a user another data key, and seals everything under it anew, in one transaction.

  For a data key that is old, or may have been seen. Notes to oneself, which lie with the application, still open: the key of before
  is kept under the new one for them. A locked account is `:locked`: `lock_with_password/4` after `remove_password/3` does it.
  Returns how many rows were sealed anew and how many were `:refused`.
  """
  @spec rotate_data_key(name, Address.user()) :: result(map)
  def rotate_data_key(name, user), do: AccountLock.rotate(Instance.fetch!(name), user!(user))

  @doc """
  Gives a thread of the archive another data key, and seals its messages anew under it, five hundred in a transaction, while traffic goes
  on.

  The thread is named as in `shred/2`. Until all messages have followed, the key of before is kept beside the new one, and
  both open. A call that was interrupted is called again, on any node, or `rotate_keys/2` finishes it. Messages of locked accounts are
  sealed anew too: below the thread's key they stay under the account's. A message that does not open is not written but counted as `:refused`;
  then the key of before stays, and the thread gets no third one until that message is gone.

  Returns how many messages were `:resealed` and `:refused`. Errors: `:key_not_found` when there is no such thread.
  """
  @spec rotate_thread_key(name, String.t() | {:direct, Address.user(), Address.user()}) ::
          result(%{resealed: non_neg_integer, refused: non_neg_integer})
  def rotate_thread_key(name, thread),
    do: MessageArchive.rotate_key(Instance.fetch!(name), shared!(thread))

  @doc """
  Wraps data keys anew under the current key-encryption key, after `:keys` has got another one. See the guide to the vault.

  After `:cipher` was changed, accounts and threads whose data key seals with the other one get another data key too, as `rotate_data_key/2` and
  `rotate_thread_key/2` do it. Accounts with a password keep theirs: only their user can change it.

  All accounts, locked ones too, all threads, and the keys of the service itself, a hundred in a transaction, while traffic goes on; with
  a key service one by one, and the service is asked between transactions. What is done is done: a call
  that was interrupted is called again, on any node. What does not open is not written, and counted as `:refused`; when nothing was,
  and `:remaining` is empty, the retired key is needed no more. `Kith.Vault.rotate/2` is the same for a release, `mix kith.rotate` for a shell.

    * `:dry_run` - `true` writes nothing and counts what would be written.
    * `:older_than` - seconds: also gives data keys that are older than that a successor, as `rotate_data_key/2` and
      `rotate_thread_key/2` do. Accounts that are locked keep theirs: only their user can. A dry run counts them all the same.
    * `:progress` - a function that is given the counts after each transaction.

  Accounts that are unlocked stay so on nodes that have both keys; with a key service they are locked, and tokens unlock them again. Tokens end with the
  key-encryption key under which they were made. Threads whose messages have not all followed to another data key are finished. Returns `%{rewrapped:, current:, refused:, rotated:, remaining: %{key_id => count}}`;
  `:rotated` are accounts and threads. Errors: `:unavailable` when a key service went
  away, after which it is called again; those of the machinery.
  """
  @spec rotate_keys(name, keyword) :: result(map)
  def rotate_keys(name, options \\ []) do
    options = lock_options!(options, [:dry_run, :older_than, :progress])
    Kith.Rotation.run(Instance.fetch!(name), options)
  end

  @doc """
  Opens all that the database holds, and writes nothing: before a retired key is destroyed, or after a restore.

  Data keys and the keys of the service, what accounts have, and the archive; traffic goes on, but for the account that is being read. `:progress` is a function that
  is given the counts now and then. Returns

    * `:opened` - keys and rows that opened. What an account with a password keeps in the archive is opened as far as its thread's key goes;
    * `:damaged` - those that did not, and data keys under a key-encryption key that is not there. What lies below such a key is not counted;
    * `:locked` - accounts that were locked: their keys opened as far as the server's keys go, their rows were passed over;
    * `:outdated` - data keys that are not under the current key-encryption key, or do not seal with the `:cipher` of the instance and are
      under no password.

  Errors: those of the machinery.
  """
  @spec verify_keys(name, keyword) ::
          result(%{
            opened: non_neg_integer,
            damaged: non_neg_integer,
            locked: non_neg_integer,
            outdated: non_neg_integer
          })
  def verify_keys(name, options \\ []) do
    options = lock_options!(options, [:progress])
    Kith.Rotation.verify(Instance.fetch!(name), options)
  end

  @doc """
  Has the key service open what calls about these users and threads need, before a transaction of the application.

  Kith waits for a key service between its transactions, and begins one anew when a key was missing. A transaction of the
  application is not Kith's to begin anew, and nobody may wait for a service in it: what is not open then is `:unavailable`. So call
  this right before, and again when it has happened all the same, as keys close after their time:

      {:ok, _} = MyApp.Kith.open_keys(["anna", "ben"], [{"anna", "ben"}])
      MyApp.Repo.transaction(fn -> MyApp.Kith.encrypt!("anna", "ben", "Dinner at seven?") end)

  A thread is its id, or both users of a direct one. Users who are not registered, and threads that are not there, are prepared, so that
  one call may register or begin each. Returns how many were opened or prepared; 0 without a key service. Errors: `:unavailable`, and
  those of the machinery.
  """
  @spec open_keys(name, [Address.user()], [String.t() | {Address.user(), Address.user()}]) ::
          result(non_neg_integer)
  def open_keys(name, users, threads \\ []) do
    if not is_list(users) or not is_list(threads),
      do: raise(ArgumentError, "expected a list of users and one of threads")

    threads =
      Enum.map(threads, fn
        {a, b} -> Kith.MessageArchive.thread_id({:direct, user!(b)}, user!(a))
        thread when is_binary(thread) -> Kith.MessageArchive.thread_id(thread, "")
        _ -> raise ArgumentError, "expected a thread to be its id or {user, user}"
      end)

    Kith.KMS.Client.open(Instance.fetch!(name), Enum.map(users, &user!/1), threads)
  end

  @doc """
  Returns the embedded database of an instance, for tables of the application beside those of Kith.

      database = MyApp.Kith.database()

      Kith.SQLite.transaction(database, fn ->
        for envelope <- MyApp.Kith.encrypt!("anna", "ben", "dinner at seven?") do
          body = {:blob, Kith.Envelope.to_binary(envelope)}
          {:ok, _} = Kith.SQLite.query(database, "INSERT INTO outgoing (body) VALUES ($1)", [body])
        end
      end)

  A transaction of the application on it is joined by the calls of Kith inside: its message and the state of the session
  are durable together or not at all. Names that begin with `signal_` are Kith's. The handle outlives a restart of the
  instance.

  Raises `ArgumentError` for an instance with `:repo`, whose database is the repository.
  """
  @spec database(name) :: Kith.SQLite.t()
  def database(name) do
    case Instance.fetch!(name).repo do
      %Kith.SQLite{} = database ->
        database

      _ ->
        raise ArgumentError,
              "expected an instance with an embedded database: this one has :repo, which is its database"
    end
  end

  @doc """
  Tells whether messages of a kind of conversation must be encrypted.

  `:direct`, `:group` and `:family` must, pairwise. For notes to `:self` it is the application's choice:
  `encrypt/4` to oneself seals them.

      iex> Enum.filter([:direct, :group, :family, :self], &Kith.requires_encryption?/1)
      [:direct, :group, :family]
  """
  @spec requires_encryption?(:direct | :group | :family | :self) :: boolean
  def requires_encryption?(kind) when kind in [:direct, :group, :family], do: true
  def requires_encryption?(:self), do: false

  def requires_encryption?(other) do
    raise ArgumentError, "expected :direct, :group, :family or :self, got: #{inspect(other)}"
  end

  for {function, arguments} <- @delegates do
    arguments = Enum.map([:name | arguments], &Macro.var(&1, __MODULE__))

    @doc "Same as `#{function}/#{length(arguments)}`, but returns the value or raises `Kith.Error`."
    def unquote(:"#{function}!")(unquote_splicing(arguments)),
      do: value!(unquote(function)(unquote_splicing(arguments)))
  end

  defp value!({:ok, value}), do: value
  defp value!({:error, error}), do: raise(error)

  # A password in the wrong place is not printed.
  defp secret!(secret) when is_binary(secret), do: secret
  defp secret!(_), do: raise(ArgumentError, "expected a string")

  defp lock_options!(options, known) do
    options = options!(options, known)
    seconds = Keyword.take(options, [:for, :older_than])

    for {key, value} <- seconds, not (is_integer(value) and value in 1..31_536_000) do
      raise ArgumentError, "expected :#{key} to be a number of seconds from 1 to 31536000"
    end

    for {key, value} <- Keyword.take(options, [:keep_tokens, :dry_run, :reseal]),
        not is_boolean(value) do
      raise ArgumentError, "expected :#{key} to be a boolean"
    end

    if fun = options[:progress],
      do:
        is_function(fun, 1) ||
          raise(ArgumentError, "expected :progress to be a function of one argument")

    options
  end

  # As Keyword.validate!/2, which prints all that it was given.
  defp options!(options, known) do
    case Keyword.keyword?(options) and Keyword.validate(options, known) do
      {:ok, options} ->
        options

      {:error, unknown} ->
        raise ArgumentError,
              "unknown options #{inspect(unknown)}, known ones are #{inspect(known)}"

      false ->
        raise ArgumentError, "expected options to be a keyword list"
    end
  end

  # A wrong value is not printed: it may be a message in the wrong place.
  defp copy_options!(options) do
    options = options!(options, [:thread, :expires_in, :archive])
    {thread, expires_in} = {options[:thread], options[:expires_in]}
    if thread != nil, do: thread!(thread)

    if not is_boolean(Keyword.get(options, :archive, true)),
      do: raise(ArgumentError, "expected :archive to be a boolean")

    max = Options.max_seconds()

    if not (expires_in == nil or (is_integer(expires_in) and expires_in in 1..max)),
      do: raise(ArgumentError, "expected :expires_in to be a number of seconds from 1 to #{max}")

    options
  end

  defp thread!({:direct, user}), do: {:direct, user!(user)}

  # The rule of user ids, for the same reason: it is text in the database.
  defp thread!(thread) do
    if not (is_binary(thread) and match?({:ok, _}, Address.parse(thread))) do
      raise ArgumentError,
            "expected a thread (1 to 255 bytes of UTF-8 without a zero byte) or {:direct, user}"
    end

    thread
  end

  defp user!(user) do
    {user, _device} = if is_binary(user), do: Address.new!(user), else: Address.new!({user, 1})
    user
  end

  defp device(user, device) do
    case {user, device} do
      {address, nil} ->
        Address.new!(address)

      {user, device} when is_binary(user) ->
        Address.new!({user, device})

      {_address, _} ->
        raise ArgumentError, "expected either an address or :device, got both"
    end
  end

  defp plaintext!(plaintext) when is_binary(plaintext), do: plaintext
  # What it is instead is not printed: it is most likely a message.
  defp plaintext!(_), do: raise(ArgumentError, "expected the plaintext to be a binary")

  defp fields!(%PreKeyBundle{} = bundle), do: %{Map.from_struct(bundle) | user: nil}
  defp fields!(%{} = fields), do: fields
  defp fields!(_), do: raise(ArgumentError, "expected a Kith.PreKeyBundle or a map of its fields")
end
