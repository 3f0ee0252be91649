defmodule Kith.Testing do
  @moduledoc """
  Helpers for the tests of an application that uses Kith.

      defmodule MyApp.ChatTest do
        use ExUnit.Case, async: true
        import Kith.Testing

        test "a message is stored encrypted, and opens for its recipient" do
          kith = start_kith!()
          for user <- ~w(anna ben), do: Kith.register!(kith, user)

          rows = MyApp.Chat.send(kith, "anna", "ben", "Dinner at seven?")
          assert_encrypted(kith, rows, "Dinner at seven?", to: "ben")
        end
      end

  Instances are real ones, with real keys, on a database in memory: `start_kith!/2`. A clock that stands still until
  it is moved is `Kith.Testing.Clock`. The guide [Testing with Kith](testing.md) shows how it fits together.

  ExUnit is called when a function needs it, and is no dependency of Kith: `options/1`, the network and the damage below
  work without it, in a script or a Livebook.

  ## What is encrypted

    * `assert_encrypted/4` - what was stored or sent shows no plaintext, and its envelopes open for their recipients
      to just that;
    * `assert_received_encrypted/3` - a process got such a message;
    * `refute_readable/2` - a term shows none of some texts, in no common form;
    * `assert_opens/3`, `refute_opens/3` - an envelope opens, or does not.

  What they raise is an `ExUnit.AssertionError`. It says where and in which form a text was found, and never the
  text itself.

  ## The network

  `deliver_all/3` opens envelopes in any order; `reorder/2`, `duplicate/1` and `drop/3` are what networks do. What they
  do depends on their arguments alone, so a test that failed fails again.

  ## Every error

  Each `t:Kith.Error.reason/0` an application should handle is one call away. Here `envelope` is a message of a session
  between anna and ben, `first` is one that starts a session, and ben has opened neither.

  | reason | how a test gets it |
  | --- | --- |
  | `:session_not_found` | `lose_session!(kith, "ben", "anna"); Kith.decrypt(kith, "ben", envelope)` |
  | `:duplicate` | `deliver_all(kith, duplicate([envelope]))` |
  | `:tampered` | `Kith.decrypt(kith, "ben", corrupt(envelope))` |
  | `:out_of_sync` | `Kith.decrypt(kith, "ben", corrupt(envelope, at: :counter))` |
  | `:key_not_found` | `start_client!(kith, "olga"); Kith.encrypt(kith, "olga", "ben", "hello")` |
  | `:untrusted_identity` | `change_identity!(kith, "anna"); Kith.encrypt(kith, "ben", "anna", "hello")` |
  | `:unknown_prekey` | `change_identity!(kith, "ben"); Kith.decrypt(kith, "ben", first)` |
  | `:malformed` | `Kith.decrypt(kith, "ben", corrupt(envelope, at: :frame))` |
  | `:unsupported_version` | `Kith.decrypt(kith, "ben", corrupt(envelope, at: :version))` |
  | `:too_large` | `Kith.encrypt(kith, "anna", "ben", String.duplicate("x", 65_537))` |
  | `:corrupted_state` | `corrupt_session!(kith, "ben", "anna"); Kith.decrypt(kith, "ben", envelope)` |
  | `:stale` | `while_contended(kith, fn -> Kith.encrypt(kith, "anna", "ben", "hello") end)` |
  | `:not_registered` | `Kith.encrypt(kith, "anna", unique_user("nobody"), "hello")` |
  | `:storage` | `while_storage_fails(kith, fn -> Kith.encrypt(kith, "anna", "ben", "hello") end)` |

  Nothing provokes `:panic`, which is a bug in the engine. Where the error alone will do, it is
  `{:error, Kith.Error.exception(:panic)}`.

  An older database is `backup/1` and `restore_backup!/3`.
  """

  alias Kith.{Address, Envelope, Error, Instance}
  alias Kith.Store.Repo
  alias Kith.Testing.{Clock, Damage, Search}

  # Of tests alone: applications do not start it, and Kith does not depend on it.
  @compile {:no_warn_undefined, [ExUnit.Callbacks, ExUnit.CaptureLog]}

  # Anybody may know it.
  @key "a key for tests, known to anybody" |> binary_part(0, 32)

  @defaults [
    database: :memory,
    keys: [current: {"test", {:key, @key}}],
    # A pass in the middle of a test would be in its way.
    maintenance_interval: :off,
    # A registration makes all of them. Replenished when none is left.
    one_time_prekeys: 5,
    one_time_kyber_prekeys: 2,
    replenish_below: 1
  ]

  @typedoc "What functions take as an envelope: the struct, or its binary or map form."
  @type given :: Envelope.t() | binary | map

  @typedoc "In which order `deliver_all/3` delivers: positions count from 0."
  @type order :: :in_order | :reversed | {:seed, integer} | [non_neg_integer]

  @typedoc "What `corrupt/2` changes. An integer is a position in the body."
  @type place :: :mac | :text | :counter | :version | :frame | integer

  @typedoc "What `backup/1` returned."
  @opaque backup :: {__MODULE__, :backup, pos_integer}

  @doc """
  Returns options of an instance for tests, to which the given ones are added.

  Without others: a database in memory, a key anybody may know, a name of its own, few prekeys so that a registration is
  fast, and no maintenance but that of `Kith.maintain/1`. `:clock` also takes a `Kith.Testing.Clock`.

      iex> {:ok, _pid} = Kith.start_link(Kith.Testing.options(name: :doctest))
      iex> Kith.register!(:doctest, "anna").user
      "anna"
  """
  @spec options(keyword) :: keyword
  def options(options \\ []) do
    defaults = if options[:repo], do: Keyword.delete(@defaults, :database), else: @defaults

    defaults
    |> Keyword.merge(options)
    |> Keyword.put_new_lazy(:name, &make_ref/0)
    |> Keyword.replace_lazy(:replenish_below, &replenish_below(&1, options))
    |> Keyword.replace_lazy(:clock, &clock/1)
  end

  # An application that asks for fewer prekeys need not know of the threshold here.
  defp replenish_below(below, options), do: min(below, options[:one_time_prekeys] || below)

  defp clock(%Clock{} = clock), do: Clock.to_function(clock)
  defp clock(other), do: other

  @doc """
  Starts an instance that ends with the test, and returns its name.

      kith = start_kith!()
      kith = start_kith!(archive: true, clock: clock)
      MyApp.Kith = start_kith!(MyApp.Kith)

  It takes the options of `options/1`. An instance with a name of its own, which is the default, disturbs no other
  test: `async: true`.

  A module that says `use Kith` is started under its own name with the options it has in its code and in the environment of
  the application, but for the database, the keys, the prekeys and the maintenance, which are those of `options/1` unless they
  are given here. There is one instance of a name. Tests that are `async: true` either share it with `unique_user/1`, or have their own
  and give its name to the code they test.

  Raises outside the process of a test, as `ExUnit.Callbacks.start_supervised!/2` does, and `ArgumentError` where the
  instance runs already.
  """
  @spec start_kith!(module | keyword, keyword) :: Kith.name()
  def start_kith!(module_or_options \\ [], options \\ [])

  def start_kith!(module, options) when is_atom(module) do
    if not (Code.ensure_loaded?(module) and function_exported?(module, :__kith__, 1)),
      do: raise(ArgumentError, "expected a module that says `use Kith`, got: #{inspect(module)}")

    own =
      Keyword.drop(module.__kith__(:options), [
        :database,
        :repo,
        :prefix | Keyword.keys(@defaults)
      ])

    own |> Keyword.merge(options) |> Keyword.put(:name, module) |> options() |> start!()
  end

  def start_kith!(options, []), do: options |> options() |> start!()

  defp start!(options) do
    name = options[:name]

    if Registry.lookup(Kith.Registry, {Kith.Supervisor, name}) != [] do
      raise ArgumentError,
            "#{inspect(name)} runs already, started by the application or by a test beside this one; " <>
              "use it as it is with users of unique_user/1, or an instance with a name of its own"
    end

    # What is wrong with them is said here, and not by a supervisor that prints all of them.
    Kith.Options.new!(options)
    ExUnit.Callbacks.start_supervised!(%{Kith.child_spec(options) | id: {Kith, name}})
    name
  end

  @doc """
  Starts an instance in the place of somebody's own client, registers a user there, and publishes their keys in the
  instance of the test. Returns the name of the client's instance.

      client = start_client!(kith, "olga", peers: ["anna"])
      [envelope] = Kith.encrypt!(kith, "anna", "olga", "hello")
      "hello" = Kith.decrypt!(client, "olga", envelope)

  Private keys of this user are not in the instance of the test: to write as `"olga"` there is `:key_not_found`.

    * `:peers` - users of the instance of the test whose keys the client is to have, so that it may write first.

  Further options are those of the client's instance.
  """
  @spec start_client!(Kith.name(), Address.user(), keyword) :: Kith.name()
  def start_client!(name, user, options \\ []) do
    {peers, options} = Keyword.pop(options, :peers, [])
    # What is published is a prekey of last resort, not one that is handed out once.
    client = options |> Keyword.put_new(:one_time_kyber_prekeys, 0) |> start_kith!()
    Kith.register!(client, user)
    Kith.publish_bundle!(name, user, Kith.pre_key_bundle!(client, user))

    for peer <- peers,
        do: Kith.publish_bundle!(client, peer, Kith.pre_key_bundle!(name, peer))

    client
  end

  @doc """
  Returns a user nobody else has in this run, for tests that share an instance.

      iex> Kith.Testing.unique_user("anna") == Kith.Testing.unique_user("anna")
      false
      iex> Kith.Testing.unique_user("anna") =~ ~r/^anna-[0-9]+$/
      true
  """
  @spec unique_user(String.t()) :: Address.user()
  def unique_user(name \\ "user") when is_binary(name),
    do: "#{name}-#{System.unique_integer([:positive])}"

  @doc """
  Registers two users where they are not, and lets them exchange three messages, so that each has heard of the other in
  one session.
  """
  @spec converse!(Kith.name(), Address.user(), Address.user()) :: :ok
  def converse!(name, a, b) do
    for user <- [a, b], do: Kith.register!(name, user)

    for {from, to} <- [{a, b}, {b, a}, {a, b}],
        envelope <- Kith.encrypt!(name, from, to, "hello"),
        do: Kith.decrypt!(name, envelope.to, envelope)

    :ok
  end

  @doc """
  Asserts that what an application stored or sent for a message is encrypted, and returns it.

      rows = Repo.all(Outgoing)
      assert_encrypted(kith, rows, "Dinner at seven?", to: ["ben", "cleo"])

      assert_encrypted(MyApp.Kith, fn -> MyApp.Chat.send("anna", "ben", text) end, text, to: "ben")

  It asserts that

    * the plaintext is readable nowhere in the term, see `refute_readable/2`;
    * there is an envelope in it, in any of the forms of `Kith.Envelope`, also as Base64, in hexadecimal or in JSON;
    * each of its envelopes opens for its recipient, to exactly the plaintext.

  The second argument is any term: rows, structs, a job, iodata. A function without arguments is called, and what it
  returned, what this process was sent and what was logged meanwhile are looked at together; then the result of the
  function is returned.

  Envelopes are opened in a transaction that is rolled back: the application can open them afterwards. One that was
  opened before is `:duplicate`, unless the instance has an archive.

    * `:to`, `:from` - a user, a device or a list of them: only envelopes to them and from them are opened, and to each of them
      there has to be one.
    * `:hidden` - further texts that must not be readable, such as the first words that would make a preview.
    * `:envelopes` - the envelopes to open, instead of those that are found.

  Take a plaintext that is nowhere else in the term: at least #{Search.min_size()} bytes.
  """
  @spec assert_encrypted(Kith.name(), term | (() -> term), binary, keyword) :: term
  def assert_encrypted(name, stored, plaintext, options \\ []) do
    options = Keyword.validate!(options, [:to, :from, :hidden, :envelopes])
    {result, looked_at} = observe(stored)
    refute_readable(looked_at, [plaintext | List.wrap(options[:hidden])])

    envelopes =
      case options[:envelopes] do
        nil -> Search.envelopes(looked_at)
        given -> given |> List.wrap() |> Enum.map(&envelope!/1)
      end

    for envelope <- addressed(envelopes, options),
        do: assert_same(name, envelope, plaintext, &peek/2)

    result
  end

  # A term, or what a function does that can be seen from outside.
  defp observe(fun) when is_function(fun, 0) do
    before = messages()
    {result, log} = ExUnit.CaptureLog.with_log(fun)
    {result, %{returned: result, received: messages() -- before, logged: log}}
  end

  defp observe(term), do: {term, term}

  defp messages do
    {:messages, messages} = Process.info(self(), :messages)
    messages
  end

  # The envelopes an assertion is about.
  defp addressed(envelopes, options) do
    found =
      for envelope <- envelopes,
          selected?(envelope.to, options[:to]),
          selected?(envelope.from, options[:from]),
          do: envelope

    if found == [],
      do: flunk("expected an envelope#{described(options)}, found none of #{length(envelopes)}")

    for {side, key} <- [to: :to, from: :from], given <- wanted(options[key]) do
      if not Enum.any?(found, &matches?(Map.fetch!(&1, side), given)),
        do:
          flunk(
            "expected an envelope #{side} #{inspect(given)}, found none of #{length(envelopes)}"
          )
    end

    found
  end

  defp wanted(nil), do: []
  defp wanted(given), do: given |> List.wrap() |> Enum.map(&Address.recipient!/1)

  defp selected?(_address, nil), do: true
  defp selected?(address, given), do: Enum.any?(wanted(given), &matches?(address, &1))

  defp matches?(address, {_, _} = given), do: address == given
  defp matches?({user, _}, given), do: user == given

  defp described(options) do
    for key <- [:from, :to], given = options[key], into: "", do: " #{key} #{inspect(given)}"
  end

  @doc """
  Asserts that this process was sent a message whose envelopes hold a plaintext, encrypted, and returns the message.

      MyApp.Chat.send("anna", "ben", "Dinner at seven?")
      assert_received_encrypted(kith, "Dinner at seven?", to: "ben")

  As with `assert_received/2` the message is taken out of the mailbox, and others stay. It is one with an
  envelope that `:to` and `:from` name, and that opens to the plaintext; about this message all of `assert_encrypted/4` is asserted.

    * `:timeout` - how many milliseconds to wait for it. Default 0.

  Further options are those of `assert_encrypted/4`.
  """
  @spec assert_received_encrypted(Kith.name(), binary, keyword) :: term
  def assert_received_encrypted(name, plaintext, options \\ []) do
    {timeout, options} = Keyword.pop(options, :timeout, 0)
    until = System.monotonic_time(:millisecond) + timeout
    message = await_message(name, plaintext, options, until)
    assert_encrypted(name, message, plaintext, options)
  end

  @poll 10

  defp await_message(name, plaintext, options, until) do
    case Enum.find(messages(), &carries?(name, &1, plaintext, options)) do
      nil ->
        if System.monotonic_time(:millisecond) >= until do
          flunk(
            "expected a message with an envelope#{described(options)} that opens to the plaintext, " <>
              "found none in a mailbox of #{length(messages())}"
          )
        end

        Process.sleep(@poll)
        await_message(name, plaintext, options, until)

      message ->
        receive do
          ^message -> message
        end
    end
  end

  defp carries?(name, message, plaintext, options) do
    Enum.any?(Search.envelopes(message), fn envelope ->
      selected?(envelope.to, options[:to]) and selected?(envelope.from, options[:from]) and
        peek(name, envelope) == {:ok, plaintext}
    end)
  end

  @doc """
  Asserts that a term shows none of some texts, and returns it.

      iex> row = %{to: "ben", body: <<51, 7, 200, 14>>}
      iex> Kith.Testing.refute_readable(row, "Dinner at seven?")
      %{to: "ben", body: <<51, 7, 200, 14>>}

      job = %{args: [%{"preview" => Base.encode64("Re: Dinner at seven?")}]}
      refute_readable(job, "Dinner at seven?")
      ** (ExUnit.AssertionError)
      expected the text of 16 bytes not to be readable, found it in Base64 at [:args][0]["preview"]

  It looks into maps and their keys, structs, lists, tuples, what functions captured, and the pieces of iodata together. A text is
  found as it is, in Base64 wherever it begins, in hexadecimal, as a list of bytes, in UTF-16, as JSON, HTML and URLs escape it,
  each of these also with Base64 or hexadecimal around what JSON escapes; and in what zlib or the external term format compressed.
  It is not found in other compressed forms, in other encodings, or where only a part of it stands: give that part
  as a text of its own. Texts have at least #{Search.min_size()} bytes.
  """
  @spec refute_readable(term, binary | [binary]) :: term
  def refute_readable(term, texts) do
    texts = List.wrap(texts)

    for text <- texts do
      if not (is_binary(text) and byte_size(text) >= Search.min_size()) do
        raise ArgumentError,
              "expected texts of at least #{Search.min_size()} bytes: shorter ones are found by chance"
      end
    end

    for text <- texts do
      with {path, form} <- Search.readable(term, [text]) do
        place = if path == "", do: "", else: " at #{String.trim(path)}"

        flunk(
          "expected the text of #{byte_size(text)} bytes not to be readable, found it #{form}#{place}"
        )
      end
    end

    term
  end

  @doc """
  Asserts that envelopes open for their recipients, each to the plaintext, and returns it.

  They are opened as the application would: a second time they are `:duplicate`. `assert_encrypted/4` leaves them as they are.
  """
  @spec assert_opens(Kith.name(), given | [given], binary) :: binary
  def assert_opens(name, envelopes, plaintext) do
    if envelopes == [], do: flunk("expected envelopes to open, got none")

    for envelope <- List.wrap(envelopes),
        do: assert_same(name, envelope!(envelope), plaintext, &open/2)

    plaintext
  end

  @doc """
  Asserts that an envelope does not open for its recipient, for a reason if one is given, and returns the error.

  Nothing is changed, whether it opens or not.
  """
  @spec refute_opens(Kith.name(), given, nil | Error.reason()) :: Error.t()
  def refute_opens(name, envelope, reason \\ nil) do
    if not (reason == nil or reason in Error.reasons()),
      do: raise(ArgumentError, "expected a reason of Kith.Error, got: #{inspect(reason)}")

    case peek(name, envelope!(envelope)) do
      {:ok, _plaintext} ->
        flunk("expected the envelope not to open#{expected(reason)}, and it opens")

      {:error, %Error{reason: found} = error} ->
        if reason in [nil, found],
          do: error,
          else:
            flunk("expected the envelope not to open#{expected(reason)}, got #{inspect(found)}")
    end
  end

  defp expected(nil), do: ""
  defp expected(reason), do: " with #{inspect(reason)}"

  # Neither text is printed: what failed is read by more people than the message was for.
  defp assert_same(name, envelope, plaintext, open) do
    case open.(name, envelope) do
      {:ok, ^plaintext} ->
        :ok

      {:ok, other} ->
        flunk(
          "expected #{inspect(envelope)} to open to the text of #{byte_size(plaintext)} bytes, " <>
            "got another one of #{byte_size(other)} bytes"
        )

      {:error, error} ->
        flunk(
          "expected #{inspect(envelope)} to open, got #{inspect(error.reason)}: #{Exception.message(error)}"
        )
    end
  end

  defp open(name, envelope), do: Kith.decrypt(name, envelope.to, envelope)

  # A message opened, and all of it undone.
  defp peek(name, envelope) do
    %{repo: repo} = Instance.fetch!(name)

    if Repo.in_transaction?(repo),
      do: raise(ArgumentError, "expected to be called outside of a transaction: it rolls back")

    case undone(repo, fn -> {__MODULE__, open(name, envelope)} end) do
      {:error, {__MODULE__, result}} -> result
      {:error, _failure} -> {:error, Error.new(:storage)}
    end
  end

  defp undone(%Kith.SQLite{} = repo, fun),
    do: Kith.SQLite.transaction(repo, fn -> Kith.SQLite.rollback(repo, fun.()) end)

  defp undone(%{module: repo}, fun), do: repo.transaction(fn -> repo.rollback(fun.()) end)

  @doc """
  Changes an envelope on its way, and returns it in the form it was given. Of a list, each.

    * `:at` - what is changed:
      * `:mac` (default) - the code that authenticates the message: `:tampered`
      * `:text` - the first byte of the ciphertext: `:tampered`
      * `:counter` - the number of the message, far ahead of any session: `:out_of_sync`
      * `:version` - the version of the protocol: `:unsupported_version`
      * `:frame` - the first field: `:malformed`
      * an integer - a byte of the body, from the end if it is negative. What comes of it depends on the byte; a few of a first
        message are not authenticated, see [Protocol](protocol.md).

  A place changes in the same way every time. Notes to oneself and reports have no other places than `:mac`, which is
  their last byte, and integers: a changed note is `:corrupted_state`, and reports are not authenticated.
  """
  @spec corrupt(given | [given], at: place) :: given | [given]
  def corrupt(envelope, options \\ [])

  def corrupt(envelopes, options) when is_list(envelopes),
    do: Enum.map(envelopes, &corrupt(&1, options))

  def corrupt(given, options) do
    options = Keyword.validate!(options, at: :mac)
    envelope = envelope!(given)

    case Damage.body(envelope.type, envelope.body, options[:at]) do
      {:ok, body} ->
        in_form_of(given, %{envelope | body: body})

      :error ->
        raise ArgumentError,
              "expected :at to be a place of a #{inspect(envelope.type)} of #{byte_size(envelope.body)} bytes, " <>
                "got: #{inspect(options[:at])}"
    end
  end

  defp envelope!(%Envelope{} = envelope), do: envelope

  defp envelope!(given) do
    parsed =
      cond do
        is_binary(given) -> Envelope.from_binary(given)
        is_map(given) -> Envelope.from_map(given)
        true -> raise ArgumentError, "expected a Kith.Envelope, its binary or its map form"
      end

    case parsed do
      {:ok, envelope} -> envelope
      {:error, error} -> raise ArgumentError, "expected an envelope: #{Exception.message(error)}"
    end
  end

  defp in_form_of(%Envelope{}, envelope), do: envelope
  defp in_form_of(given, envelope) when is_binary(given), do: Envelope.to_binary(envelope)
  defp in_form_of(%{}, envelope), do: Envelope.to_map(envelope)

  @doc """
  Returns a list in another order, which the seed decides.

      iex> Kith.Testing.reorder([1, 2, 3, 4, 5], 7) == Kith.Testing.reorder([1, 2, 3, 4, 5], 7)
      true
      iex> Enum.sort(Kith.Testing.reorder([1, 2, 3, 4, 5], 7))
      [1, 2, 3, 4, 5]
      iex> Kith.Testing.reorder([1, 2], 7)
      [2, 1]

  It is never the order that was given, where there is another one.
  """
  @spec reorder([element], integer) :: [element] when element: term
  def reorder(list, seed) when is_list(list) and is_integer(seed),
    do: reorder(list, :rand.seed_s(:exsss, seed), Enum.uniq(list))

  defp reorder(list, _random, []), do: list
  defp reorder(list, _random, [_one]), do: list

  defp reorder(list, random, distinct) do
    {keyed, random} =
      Enum.map_reduce(list, random, fn element, random ->
        {key, random} = :rand.uniform_s(random)
        {{key, element}, random}
      end)

    case keyed |> Enum.sort_by(&elem(&1, 0)) |> Enum.map(&elem(&1, 1)) do
      ^list -> reorder(list, random, distinct)
      shuffled -> shuffled
    end
  end

  @doc """
  Returns a list with each element twice in a row.

      iex> Kith.Testing.duplicate([1, 2])
      [1, 1, 2, 2]
  """
  @spec duplicate([element]) :: [element] when element: term
  def duplicate(list) when is_list(list), do: Enum.flat_map(list, &[&1, &1])

  @doc """
  Returns a list without some of its elements, which the seed chooses. The others stay in their order.

      iex> length(Kith.Testing.drop([1, 2, 3, 4, 5], 2, 7))
      3
      iex> Kith.Testing.drop([1, 2], 2, 7)
      []
  """
  @spec drop([element], non_neg_integer, integer) :: [element] when element: term
  def drop(list, count, seed) when is_list(list) and is_integer(count) and count >= 0 do
    positions = Enum.take(reorder(Enum.to_list(0..(length(list) - 1)//1), seed), count)
    for {element, position} <- Enum.with_index(list), position not in positions, do: element
  end

  @doc """
  Delivers envelopes to their recipients, and returns `{envelope, result}` of each as they were delivered.

      envelopes = for n <- 1..3, envelope <- Kith.encrypt!(kith, "anna", "ben", "\#{n}"), do: envelope
      [{_, {:ok, "3"}}, {_, {:ok, "2"}}, {_, {:ok, "1"}}] = deliver_all(kith, envelopes, :reversed)

  The order is `:in_order` (default), `:reversed`, `{:seed, integer}` as of `reorder/2`, or a list of positions, from 0:
  one that is missing is lost, and one that is there twice is delivered twice.

  In place of a name it takes a function, the application's own, which is called with each envelope.
  """
  @spec deliver_all(Kith.name() | (Envelope.t() -> result), [Envelope.t()], order) ::
          [{Envelope.t(), result | {:ok, binary} | {:error, Error.t()}}]
        when result: term
  def deliver_all(name_or_fun, envelopes, order \\ :in_order)

  def deliver_all(fun, envelopes, order) when is_function(fun, 1),
    do: for(envelope <- ordered(envelopes, order), do: {envelope, fun.(envelope)})

  def deliver_all(name, envelopes, order),
    do: deliver_all(&open(name, envelope!(&1)), envelopes, order)

  defp ordered(envelopes, :in_order), do: envelopes
  defp ordered(envelopes, :reversed), do: Enum.reverse(envelopes)
  defp ordered(envelopes, {:seed, seed}), do: reorder(envelopes, seed)

  defp ordered(envelopes, positions) when is_list(positions) do
    for position <- positions do
      if not (is_integer(position) and position in 0..(length(envelopes) - 1)//1) do
        raise ArgumentError,
              "expected positions in a list of #{length(envelopes)}, got: #{inspect(position)}"
      end

      Enum.at(envelopes, position)
    end
  end

  defp ordered(_envelopes, order) do
    raise ArgumentError,
          "expected :in_order, :reversed, {:seed, integer} or a list of positions, got: #{inspect(order)}"
  end

  @doc """
  Makes a device lose its session with a peer: what the peer goes on to send in it is `:session_not_found`.

  It also forgets whose identity the peer has: it is `Kith.delete!/3`.
  """
  @spec lose_session!(Kith.name(), Address.given(), Address.given()) :: :ok
  def lose_session!(name, address, peer) do
    Kith.delete!(name, address, peer)
    :ok
  end

  @doc """
  Damages the row in which a device keeps its session with a peer, as a bad disk would: what it opens or sends next is
  `:corrupted_state`.

  Raises `Kith.Error` when there is no session.
  """
  @spec corrupt_session!(Kith.name(), Address.given(), Address.given()) :: :ok
  def corrupt_session!(name, address, peer) do
    {user, device} = Address.new!(address)
    {peer, peer_device} = Address.new!(peer)
    key = [user, device, peer, peer_device]
    where = "user_id = $1 AND device_id = $2 AND peer_id = $3 AND peer_device_id = $4"

    changed =
      Instance.transaction(Instance.fetch!(name), fn repo ->
        read = "SELECT state FROM kith.signal_sessions WHERE #{where} AND state IS NOT NULL"
        write = "UPDATE kith.signal_sessions SET state = $5 WHERE #{where}"

        case Repo.rows(repo, read, key) do
          [[state]] ->
            {:ok, damaged} = Damage.body(:row, state, -1)
            {{:ok, Repo.execute(repo, write, key ++ [{:blob, damaged}])}, []}

          [] ->
            {{:error, Error.new(:session_not_found)}, []}
        end
      end)

    case changed do
      {:ok, 1} -> :ok
      {:error, error} -> raise error
    end
  end

  @doc """
  Sets a user up anew, on each of their devices, as a lost phone would: with another identity key and other prekeys.

  Others who knew them are told `:untrusted_identity` until they `Kith.trust/4` the new key, and first messages that were
  made before are `:unknown_prekey` to them. Returns what is registered now, the first device first.
  """
  @spec change_identity!(Kith.name(), Address.user()) :: [Kith.registered()]
  def change_identity!(name, user) do
    instance = Instance.fetch!(name)
    user = Address.recipient!(user)

    {:ok, addresses} =
      Instance.transaction(instance, fn repo ->
        {{:ok, repo |> Kith.Store.Accounts.devices([user]) |> Map.keys() |> Enum.sort()}, []}
      end)

    if addresses == [], do: raise(Error.new(:not_registered))
    for address <- addresses, do: Kith.unregister!(name, address)
    for address <- addresses, do: Kith.register!(name, address)
  end

  @doc """
  Remembers all rows of an instance, for `restore_backup!/3`. It is gone with the instance.

  It takes an instance on SQLite.
  """
  @spec backup(Kith.name()) :: backup
  def backup(name) do
    repo = embedded!(name)
    id = System.unique_integer([:positive])

    {:ok, _} =
      Kith.SQLite.transaction(repo, fn ->
        for table <- tables(repo) do
          {:ok, _} =
            Kith.SQLite.query(
              repo,
              "CREATE TEMP TABLE #{copy(id, table)} AS SELECT * FROM main.#{table}"
            )
        end
      end)

    {__MODULE__, :backup, id}
  end

  @doc """
  Puts the rows of a `backup/1` back, and says nothing of it: as a restore that Kith does not recognize.

    * `:user` - only what belongs to this user. The other side then is further than they are, and the healing of a session
      has something to do.

  An instance that recognizes its restored database does what `Kith.restored/1` does: call it to have that.
  """
  @spec restore_backup!(Kith.name(), backup, user: Address.user()) :: :ok
  def restore_backup!(name, {__MODULE__, :backup, id}, options \\ []) do
    options = Keyword.validate!(options, [:user])
    repo = embedded!(name)
    {where, params} = if user = options[:user], do: {"WHERE user_id = $1", [user]}, else: {"", []}

    restored =
      Kith.SQLite.transaction(repo, fn ->
        for table <- tables(repo), options[:user] == nil or owned?(repo, table) do
          {:ok, _} = Kith.SQLite.query(repo, "DELETE FROM main.#{table} #{where}", params)

          {:ok, _} =
            Kith.SQLite.query(
              repo,
              "INSERT INTO main.#{table} SELECT * FROM temp.#{copy(id, table)} #{where}",
              params
            )
        end
      end)

    {:ok, _} = restored
    :ok
  end

  defp copy(id, table), do: ~s("kith_backup_#{id}_#{table}")

  defp tables(repo) do
    sql = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    {:ok, %{rows: rows}} = Kith.SQLite.query(repo, sql)
    for [table] <- rows, do: table
  end

  defp owned?(repo, table) do
    sql = "SELECT 1 FROM pragma_table_info($1) WHERE name = 'user_id'"
    {:ok, %{rows: rows}} = Kith.SQLite.query(repo, sql, [table])
    rows != []
  end

  @doc """
  Calls a function while no write to the database of an instance succeeds, for nobody, and returns what it returned.

  Whatever would change something is `:storage` meanwhile. It takes an instance on SQLite.
  """
  @spec while_storage_fails(Kith.name(), (() -> result)) :: result when result: term
  def while_storage_fails(name, fun) do
    with_database(name, "PRAGMA query_only = ON", fun, "PRAGMA query_only = OFF")
  end

  @doc """
  Calls a function while another writer is always the first to change a session of an instance, and returns what it
  returned.

  Whatever would change a session is `:stale` meanwhile. It takes an instance on SQLite.
  """
  @spec while_contended(Kith.name(), (() -> result)) :: result when result: term
  def while_contended(name, fun) do
    trigger = """
    CREATE TEMP TRIGGER kith_contended BEFORE INSERT ON main.signal_sessions
    BEGIN SELECT RAISE(IGNORE); END
    """

    with_database(name, trigger, fun, "DROP TRIGGER temp.kith_contended")
  end

  defp with_database(name, before, fun, afterwards) do
    repo = embedded!(name)
    :ok = Kith.SQLite.execute(repo, before)

    try do
      fun.()
    after
      :ok = Kith.SQLite.execute(repo, afterwards)
    end
  end

  defp embedded!(name) do
    case Instance.fetch!(name).repo do
      %Kith.SQLite{} = repo -> repo
      _other -> raise ArgumentError, "expected an instance on SQLite, got one on a repository"
    end
  end

  # Without a call that a compiler would look for.
  defp flunk(message),
    do: raise(apply(ExUnit.AssertionError, :exception, [[message: message]]))
end
