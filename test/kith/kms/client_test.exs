defmodule Kith.KMS.ClientTest do
  # What the native library asks of a key service, and how often.
  use Kith.Case, async: true

  alias Kith.{Instance, Native}
  alias Kith.KMS.{Reference, Server}
  alias Kith.Test.KMSProxy

  @create "POST /create_dek_for_thread"
  @encrypt "POST /encrypt"
  @decrypt "POST /decrypt"

  defmodule Seventh do
    @moduledoc false
    # What this service encrypts is of version 7, and it wants to be told.
    @behaviour Kith.KMS

    @impl true
    defdelegate create_dek_for_thread(state, thread_id), to: Reference

    @impl true
    defdelegate wrapped_dek(state, key_id), to: Reference

    @impl true
    def encrypt_with_dek(state, key_id, plaintext, aad) do
      with {:ok, ciphertext, 1} <- Reference.encrypt_with_dek(state, key_id, plaintext, aad),
           do: {:ok, ciphertext, 7}
    end

    @impl true
    def decrypt_with_dek(state, key_id, ciphertext, aad, 7),
      do: Reference.decrypt_with_dek(state, key_id, ciphertext, aad, 1)

    # Who sends no place sends no version.
    def decrypt_with_dek(state, key_id, ciphertext, "", nil),
      do: Reference.decrypt_with_dek(state, key_id, ciphertext, "", 1)

    def decrypt_with_dek(_state, _key_id, _ciphertext, _aad, _version), do: {:error, :not_found}
  end

  setup context do
    folder = tmp_dir!()
    socket = Path.join(folder, "kms.sock")
    {:ok, state} = Reference.open(Path.join(folder, "keys"))
    module = Map.get(context, :service, Reference)
    start_supervised!({Server, service: {module, state}, socket: socket})
    %{folder: folder, proxy: KMSProxy.start!(socket)}
  end

  defp start!(proxy, source, options \\ []) do
    source = Keyword.merge([url: KMSProxy.url(proxy), timeout: 20_000, pause: 0], source)
    start_kith!([keys: [current: {"kms", {:kms, source}}]] ++ options)
  end

  # One user, whose key is closed, and nothing yet on the record.
  defp registered!(proxy, source) do
    kith = start!(proxy, source)
    register!(kith, ["ada"])
    :ok = Native.kms_forget(vault(kith))
    KMSProxy.requests(proxy)
    kith
  end

  defp vault(kith), do: Instance.fetch!(kith).vault

  # Opens what is closed, and says why not, and what was asked and became of it.
  defp fetch(kith) do
    [[key]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'ada'")
    {:ok, {reason, calls}} = Native.kms_fetch(vault(kith), :account, {"ada", key})
    {reason, outcomes(calls)}
  end

  # Has a key made for the next user.
  defp prepare(kith) do
    {:ok, {reason, _served?, calls}} = Native.kms_prepare(vault(kith), :account, "ben", false)
    {reason, outcomes(calls)}
  end

  defp outcomes(calls),
    do: for({operation, _age, _duration, failure} <- calls, do: {operation, failure})

  defp lines(proxy), do: for({line, _body} <- KMSProxy.requests(proxy), do: line)

  # How many keys the service has made.
  defp made(folder), do: length(Path.wildcard(Path.join(folder, "keys/*.dek")))

  describe "what may be done twice" do
    for {fault, failure} <- [{503, :status}, {:cut, :broken}, {:lost, :broken}] do
      @tag fault: fault, failure: failure
      test "is asked again after #{inspect(fault)}, :retries times more and then no more",
           %{proxy: proxy} = context do
        kith = registered!(proxy, retries: 2)

        KMSProxy.fail(proxy, List.duplicate(context.fault, 2))
        assert fetch(kith) == {nil, [decrypt: nil]}
        requests = KMSProxy.requests(proxy)
        assert [{@decrypt, body}, {@decrypt, body}, {@decrypt, body}] = requests

        :ok = Native.kms_forget(vault(kith))
        KMSProxy.fail(proxy, List.duplicate(context.fault, 3))
        assert fetch(kith) == {:unavailable, [decrypt: context.failure]}
        assert lines(proxy) == List.duplicate(@decrypt, 3)

        # The fourth would have been answered.
        assert {:ok, [_]} = Kith.encrypt(kith, "ada", "ada", "note")
        assert lines(proxy) == [@decrypt]
      end
    end

    test "is asked again after a time-out", %{proxy: proxy} do
      kith = registered!(proxy, retries: 1, timeout: 500)
      KMSProxy.fail(proxy, [:silent, :silent])
      assert fetch(kith) == {:unavailable, [decrypt: :timeout]}
      # On a slow machine it is written down after the client has gone.
      eventually(fn -> length(KMSProxy.requests(proxy, :keep)) >= 2 end)
      assert lines(proxy) == [@decrypt, @decrypt]
    end

    test "is asked once with retries: 0", %{proxy: proxy} do
      kith = registered!(proxy, retries: 0)
      KMSProxy.fail(proxy, [503])
      assert fetch(kith) == {:unavailable, [decrypt: :status]}
      assert lines(proxy) == [@decrypt]
    end

    test "is to encrypt, to decrypt, and to ask whether the service answers", %{proxy: proxy} do
      kith = start!(proxy, retries: 1)
      KMSProxy.fail(proxy, [nil, :cut, nil, 503])
      assert {nil, [create_dek_for_thread: nil, encrypt: nil, decrypt: nil]} = prepare(kith)
      assert lines(proxy) == [@create, @encrypt, @encrypt, @decrypt, @decrypt]

      KMSProxy.fail(proxy, [503])
      assert {:ok, {nil, _}} = Native.kms_probe(vault(kith))
      assert ["GET /get_wrapped?key_id=" <> _, "GET /get_wrapped?key_id=" <> _] = lines(proxy)
    end
  end

  describe "what is an answer is not asked for again:" do
    for {status, failure, reason} <- [
          {404, :key_not_found, :key_not_found},
          {400, :refused, :corrupted_state},
          {422, :refused, :corrupted_state},
          {401, :forbidden, :unavailable},
          {403, :forbidden, :unavailable},
          # An answer that lacks what was asked for.
          {200, :answer, :unavailable}
        ] do
      @tag status: status, failure: failure, reason: reason
      test "#{status}", %{proxy: proxy} = context do
        kith = registered!(proxy, retries: 2)
        KMSProxy.fail(proxy, [context.status])
        assert fetch(kith) == {context.reason, [decrypt: context.failure]}
        assert lines(proxy) == [@decrypt]
      end
    end
  end

  describe "a key that may have been made is not asked for again" do
    for {fault, failure, made} <- [
          {503, :status, 0},
          {:cut, :broken, 0},
          {:lost, :broken, 1},
          {:silent, :timeout, 1}
        ] do
      @tag fault: fault, failure: failure, made: made
      test "after #{inspect(fault)}", %{proxy: proxy, folder: folder} = context do
        timeout = if context.fault == :silent, do: 500, else: 20_000
        kith = start!(proxy, retries: 3, timeout: timeout)
        KMSProxy.fail(proxy, [context.fault])
        assert prepare(kith) == {:unavailable, [create_dek_for_thread: context.failure]}
        # On a slow machine that is after the client has gone.
        eventually(fn -> KMSProxy.requests(proxy, :keep) != [] end)
        assert lines(proxy) == [@create]
        eventually(fn -> made(folder) == context.made end)
      end
    end
  end

  test "a key is asked for again where no connection came about", %{folder: folder} do
    {:ok, state} = Reference.open(Path.join(folder, "keys"))
    socket = Path.join(folder, "late.sock")
    # With ten retries it does not give up within two seconds.
    source = [url: "unix://" <> socket, timeout: 20_000, retries: 10]
    kith = start_kith!(keys: [current: {"kms", {:kms, source}}])
    preparing = Task.async(fn -> prepare(kith) end)
    assert Task.yield(preparing, 100) == nil
    start_supervised!({Server, service: {Reference, state}, socket: socket}, id: :late)
    assert {nil, [{:create_dek_for_thread, nil} | _]} = Task.await(preparing, 60_000)
  end

  describe "with pause: 60_000" do
    test "nothing is sent after a call has failed", %{proxy: proxy} do
      kith = registered!(proxy, retries: 1, pause: 60_000)
      KMSProxy.fail(proxy, [503, 503])
      assert fetch(kith) == {:unavailable, [decrypt: :status]}
      assert lines(proxy) == [@decrypt, @decrypt]

      # Whatever it is, also for those who have asked for nothing yet.
      assert fetch(kith) == {:unavailable, [decrypt: :paused]}
      assert prepare(kith) == {:unavailable, [create_dek_for_thread: :paused]}

      assert {:ok, {:unavailable, [{:get_wrapped, _, _, :paused}]}} =
               Native.kms_probe(vault(kith))

      assert reason(Kith.register(kith, "cleo")) == :unavailable
      assert reason(Kith.encrypt(kith, "ada", "ada", "note")) == :unavailable
      assert lines(proxy) == []
    end

    test "a call that came through with a retry is no failure", %{proxy: proxy} do
      kith = registered!(proxy, retries: 1, pause: 60_000)
      KMSProxy.fail(proxy, [503])
      assert fetch(kith) == {nil, [decrypt: nil]}
      :ok = Native.kms_forget(vault(kith))
      assert fetch(kith) == {nil, [decrypt: nil]}
      assert lines(proxy) == [@decrypt, @decrypt, @decrypt]
    end

    test "a service that has no such key, or does not decrypt, is asked on", %{proxy: proxy} do
      kith = registered!(proxy, retries: 1, pause: 60_000)

      for {status, failure} <- [{404, :key_not_found}, {422, :refused}] do
        KMSProxy.fail(proxy, [status])
        assert {_reason, [decrypt: ^failure]} = fetch(kith)
      end

      assert fetch(kith) == {nil, [decrypt: nil]}
      assert lines(proxy) == [@decrypt, @decrypt, @decrypt]
    end
  end

  test "after the pause it is asked again", %{proxy: proxy} do
    kith = registered!(proxy, retries: 0, pause: 1)
    KMSProxy.fail(proxy, [503])
    assert fetch(kith) == {:unavailable, [decrypt: :status]}
    eventually(fn -> fetch(kith) == {nil, [decrypt: nil]} end)
    assert lines(proxy) == [@decrypt, @decrypt]
  end

  describe "the version of a key that the service says" do
    for aad <- [true, false] do
      @tag service: Seventh, aad: aad
      test "is stored, and #{if aad, do: "sent back", else: "not sent"} with aad: #{aad}",
           %{proxy: proxy, aad: aad} do
        kith = start!(proxy, [aad: aad], archive: true)
        converse!(kith, "ada", "ben")

        for table <- ~w(signal_accounts signal_threads) do
          rows = sql!(kith, "SELECT kek_id, kek_version FROM #{table}")
          assert Enum.uniq(rows) == [["kms", 7]]
        end

        :ok = Native.kms_forget(vault(kith))
        KMSProxy.requests(proxy)
        assert send!(kith, "ada", "ben", "again") == "again"
        # Two accounts and a conversation.
        assert [_, _, _] = requests = KMSProxy.requests(proxy)

        for {line, body} <- requests do
          assert line == @decrypt
          assert body =~ ~s("key_version":7) == aad
          # 32 bytes in Base64.
          assert body =~ ~r/"aad":"[A-Za-z0-9+\/]{43}="/ == aad
        end

        assert length(Enum.uniq(requests)) == 3
      end
    end
  end
end
