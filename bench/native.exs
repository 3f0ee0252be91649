defmodule Bench.Native do
  # The native library alone: sealed state goes in and out, and is kept in a map here.

  alias Kith.Native

  @plaintext String.duplicate("a", 256)
  @now 1_790_000_000_000

  def start do
    {:ok, vault} =
      Native.vault_open(
        "bench",
        [{"bench", {:key, :crypto.strong_rand_bytes(32)}}],
        %{keys: 16, lifetime: 1_000, concurrency: 4},
        :aes_256_gcm
      )

    anna = person(vault, "anna")
    ben = person(vault, "ben")
    {at_anna, at_ben} = establish(vault, anna, ben)

    %{vault: vault, families: %{}, pair: {anna, ben}, rows: {at_anna, at_ben}}
  end

  @doc "Bytes of the sealed state of a session of a family."
  def state_size(%{families: families}) do
    {_, %{rows: [row | _]}} = Enum.at(families, 0)
    byte_size(row.state)
  end

  def prepare(state, people) do
    [sender | others] = for number <- 1..people, do: person(state.vault, "person-#{number}")
    rows = for other <- others, do: state.vault |> establish(sender, other) |> elem(0)
    family = %{sender: sender, others: others, rows: rows}
    put_in(state.families[people], family)
  end

  def sample(state, operation, people, samples) do
    Enum.map_reduce(1..samples, state, fn _, state -> once(state, operation, people) end)
  end

  defp once(state, "established", people) do
    family = state.families[people]
    recipients = Enum.zip_with(family.others, family.rows, &recipient(&1, &2, nil))
    {time, {:ok, results}} = encrypt(state.vault, family.sender, recipients)
    rows = Enum.zip_with(family.rows, results, fn row, {:ok, result} -> next(row, result) end)
    {time, put_in(state.families[people].rows, rows)}
  end

  defp once(state, "cold", people) do
    family = state.families[people]
    recipients = Enum.map(family.others, &recipient(&1, none(), &1.bundle))
    {time, {:ok, results}} = encrypt(state.vault, family.sender, recipients)
    true = Enum.all?(results, &match?({:ok, %{type: :prekey}}, &1))
    {time, state}
  end

  defp once(%{pair: {anna, ben}, rows: {at_anna, at_ben}} = state, "decrypt", _people) do
    {at_anna, message} = send_to(state.vault, anna, ben, at_anna)
    {time, at_ben} = open(state.vault, ben, anna, at_ben, message)
    {time, %{state | rows: {at_anna, at_ben}}}
  end

  defp once(%{pair: {anna, ben}, rows: {at_anna, at_ben}} = state, "decrypt_new_chain", people) do
    {at_ben, answer} = send_to(state.vault, ben, anna, at_ben)
    {_, at_anna} = open(state.vault, anna, ben, at_anna, answer)
    once(%{state | rows: {at_anna, at_ben}}, "decrypt", people)
  end

  defp once(%{pair: {anna, ben}} = state, "decrypt_first", _people) do
    {_, message} = send_to(state.vault, anna, ben, none(), ben.bundle)
    {time, _} = open(state.vault, ben, anna, none(), message)
    {time, state}
  end

  defp person(vault, user) do
    {:ok, data_key} = Native.account_create(vault, user)
    account = {user, data_key}
    {:ok, {public_key, identity, registration_id}} = Native.identity_create(vault, account, 1)

    {:ok, {id, signed_prekey, signature, sealed}} =
      Native.signed_prekey_create(vault, account, 1, identity, 1)

    {:ok, [{prekey_id, prekey, sealed_prekey}]} = Native.prekeys_create(vault, account, 1, 1, 1)

    {:ok, [{kyber_id, kyber_prekey, kyber_signature, sealed_kyber_prekey}]} =
      Native.kyber_prekeys_create(vault, account, 1, identity, :kyber_one_time, {1, 1})

    %{
      user: user,
      account: account,
      local: %{
        device: 1,
        registration_id: registration_id,
        identity: identity,
        minimum_version: 4
      },
      private_halves: %{
        signed_prekey: sealed,
        prekey: sealed_prekey,
        kyber_prekey: {:kyber_one_time, sealed_kyber_prekey}
      },
      bundle: %{
        registration_id: registration_id,
        identity_key: public_key,
        signed_prekey: {id, signed_prekey, signature},
        prekey: {prekey_id, prekey},
        kyber_prekey: {kyber_id, kyber_prekey, kyber_signature}
      }
    }
  end

  # The next message of the first one is one more of a chain the second one knows.
  defp establish(vault, a, b) do
    {at_a, first} = send_to(vault, a, b, none(), b.bundle)
    {_, at_b} = open(vault, b, a, none(), first)
    {at_b, answer} = send_to(vault, b, a, at_b)
    {_, at_a} = open(vault, a, b, at_a, answer)
    {at_a, next} = send_to(vault, a, b, at_a)
    {_, at_b} = open(vault, b, a, at_b, next)
    {at_a, at_b}
  end

  defp send_to(vault, from, to, row, bundle \\ nil) do
    {_, {:ok, [{:ok, result}]}} = encrypt(vault, from, [recipient(to, row, bundle)])
    {next(row, result), {result.type, result.body}}
  end

  defp encrypt(vault, from, recipients) do
    time(fn ->
      Native.session_encrypt(vault, from.account, from.local, recipients, @plaintext, @now)
    end)
  end

  defp open(vault, to, from, row, message) do
    peer =
      row
      |> Map.merge(%{user: from.user, device: 1, archive: [], entries: nil, chunks: nil})
      |> Map.merge(to.private_halves)

    {time, opened} = time(fn -> step(vault, to, peer, message) end)
    @plaintext = opened.plaintext
    {time, next(row, opened)}
  end

  # Some twice in an epoch the chunks are asked for that have arrived before.
  defp step(vault, to, peer, message) do
    case Native.session_decrypt(vault, to.account, to.local, peer, message) do
      {:ok, opened} -> opened
      {:need, [:chunks]} -> step(vault, to, %{peer | chunks: peer.pages}, message)
    end
  end

  defp recipient(person, row, bundle),
    do: Map.merge(row, %{user: person.user, device: 1, bundle: bundle})

  defp none, do: %{generation: 0, state: nil, braid: nil, identity: nil, sibling: nil, pages: []}

  defp next(row, result) do
    %{
      row
      | generation: row.generation + 1,
        state: result.state,
        braid: result.braid || row.braid,
        identity: result.identity || row.identity,
        pages: pages(row.pages, result)
    }
  end

  # What the session keeps beside itself: chunks, as every message arrives.
  defp pages(pages, %{entries_added: added, session_id: id} = opened) do
    pages = Enum.reject(pages, fn {_, group, _, _} -> group in opened.entries_dropped end)
    for({group, page, sealed} <- added, do: {id, group, page, sealed}) ++ pages
  end

  defp pages(pages, _encrypted), do: pages

  defp time(fun) do
    start = System.monotonic_time(:nanosecond)
    result = fun.()
    {System.monotonic_time(:nanosecond) - start, result}
  end
end
