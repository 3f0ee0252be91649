defmodule Kith.Store.Keys do
  @moduledoc false
  # Rows as somebody sees them who seals them anew: what each is, where it stands, and its bytes.

  alias Kith.Address
  alias Kith.Store.{Accounts, Repo, WrappedKey}

  @device [user_id: :text, device_id: :number]
  @pair @device ++ [peer_id: :text, peer_device_id: :number]

  @typedoc """
  A sealed column: table, key columns with their values, column, kind of the vault's context, fields of the context.
  """
  @type sealed :: %{
          table: String.t(),
          key: [{atom, term}],
          column: String.t(),
          kind: String.t(),
          fields: [binary | integer],
          bytes: binary
        }

  @prekeys %{
    "one_time" => "one-time-prekey",
    "signed" => "signed-prekey",
    "kyber_one_time" => "kyber-one-time-prekey",
    "kyber_last_resort" => "kyber-last-resort-prekey"
  }

  @doc """
  Makes whoever works with the keys of a user wait, and waits for those who do: the account, its devices, its sessions, in
  the order in which others lock them.
  """
  @spec lock(Repo.repo(), Address.user()) :: :ok
  def lock(repo, user) do
    Accounts.lock(repo, user)

    for table <- ~w(signal_identity_keys signal_sessions) do
      order =
        if table == "signal_sessions", do: "device_id, peer_id, peer_device_id", else: "device_id"

      Repo.lock_rows(repo, "SELECT 1 FROM kith.#{table} WHERE user_id = $1 ORDER BY #{order}", [
        user
      ])
    end

    :ok
  end

  @doc "All that is sealed under the data key of a user, but for sessions, which are sealed to their braids."
  @spec rows(Repo.repo(), Address.user()) :: [sealed]
  def rows(repo, user) do
    identities(repo, user) ++
      prekeys(repo, user) ++
      remembered(repo, user) ++
      braids(repo, user) ++
      archived(repo, user) ++
      entries(repo, user) ++
      retired(repo, user)
  end

  defp identities(repo, user) do
    for {key, [bytes]} <-
          read(repo, "signal_identity_keys", @device, ~w(private_key_encrypted), user),
        bytes != nil,
        do:
          sealed(
            "signal_identity_keys",
            key,
            "private_key_encrypted",
            "identity",
            values(key),
            bytes
          )
  end

  defp prekeys(repo, user) do
    columns = @device ++ [kind: :text, prekey_id: :number]

    for {key, [bytes]} <- read(repo, "signal_prekeys", columns, ~w(private_key_encrypted), user),
        bytes != nil,
        kind = @prekeys[key[:kind]],
        kind != nil do
      fields = [key[:user_id], key[:device_id], key[:prekey_id]]
      sealed("signal_prekeys", key, "private_key_encrypted", kind, fields, bytes)
    end
  end

  defp remembered(repo, user) do
    for {key, [bytes]} <- read(repo, "signal_sessions", @pair, ~w(identity), user),
        bytes != nil,
        do: sealed("signal_sessions", key, "identity", "peer-identity", values(key), bytes)
  end

  defp braids(repo, user) do
    for {key, [session_id, revision, bytes]} <-
          read(repo, "signal_braids", @pair, ~w(session_id revision braid), user) do
      fields = values(key) ++ [session_id, revision]
      sealed("signal_braids", key, "braid", "braid", fields, bytes)
    end
  end

  defp archived(repo, user) do
    columns = @pair ++ [session_id: :bytes]

    for {key, [position, bytes]} <-
          read(repo, "signal_archived_sessions", columns, ~w(position state), user) do
      fields = values(key) ++ [position]
      sealed("signal_archived_sessions", key, "state", "archived-session", fields, bytes)
    end
  end

  defp entries(repo, user) do
    columns = @pair ++ [session_id: :bytes, entry_group: :bytes, number: :number]

    for {key, [bytes]} <- read(repo, "signal_session_entries", columns, ~w(entry), user),
        do: sealed("signal_session_entries", key, "entry", "session-entry", values(key), bytes)
  end

  defp retired(repo, user) do
    columns = [user_id: :text, key_id: :bytes]

    for {key, [bytes]} <- read(repo, "signal_retired_keys", columns, ~w(data_key), user),
        do: sealed("signal_retired_keys", key, "data_key", "retired-key", values(key), bytes)
  end

  @doc "Sessions: pair, generation, state, and the braid beside it."
  @spec sessions(Repo.repo(), Address.user()) :: [{[{atom, term}], integer, binary, nil | binary}]
  def sessions(repo, user) do
    braids =
      Map.new(read(repo, "signal_braids", @pair, ~w(braid), user), fn {key, [braid]} ->
        {key, braid}
      end)

    for {key, [generation, state]} <-
          read(repo, "signal_sessions", @pair, ~w(generation state), user),
        state != nil,
        do: {key, generation, state, braids[key]}
  end

  defp sealed(table, key, column, kind, fields, bytes),
    do: %{table: table, key: key, column: column, kind: kind, fields: fields, bytes: bytes}

  defp values(key), do: for({_, value} <- key, do: value)

  defp read(repo, table, key, columns, user) do
    names = Enum.map(Keyword.keys(key), &to_string/1)
    sql = "SELECT #{Enum.join(names ++ columns, ", ")} FROM kith.#{table} WHERE user_id = $1"

    for row <- Repo.rows(repo, sql, [user]) do
      {values, rest} = Enum.split(row, length(key))
      {Enum.zip(Keyword.keys(key), values), rest}
    end
  end

  @bytes [:session_id, :entry_group, :key_id]

  @doc "Writes the bytes of a row anew. Returns 0 when they are not those that were read: a key may have been erased since."
  def put(repo, %{table: table, key: key, column: column, bytes: before}, bytes),
    do: put(repo, table, key ++ [{column, {:blob, before}}], [{column, {:blob, bytes}}])

  def put(repo, table, key, changes) do
    count = length(changes)

    set =
      changes
      |> Enum.with_index(1)
      |> Enum.map_join(", ", fn {{column, _}, n} -> "#{column} = $#{n}" end)

    where =
      key
      |> Enum.with_index(count + 1)
      |> Enum.map_join(" AND ", fn {{column, _}, n} -> "#{column} = $#{n}" end)

    params =
      Enum.map(changes, &elem(&1, 1)) ++
        for({column, value} <- key, do: if(column in @bytes, do: {:blob, value}, else: value))

    Repo.execute(repo, "UPDATE kith.#{table} SET #{set} WHERE #{where}", params)
  end

  @doc "Gives an account another data key. Returns 0 when it was not the one that is there."
  def put_data_key(repo, user, before, data_key, changed_at) do
    sql = """
    UPDATE kith.signal_accounts SET data_key = $3, key_changed_at = COALESCE($4, key_changed_at),
      key_id = $5, wrapped_dek = $6, kek_id = $7, kek_version = $8
    WHERE user_id = $1 AND data_key = $2
    """

    params = [user, {:blob, before}, {:blob, data_key}, changed_at | WrappedKey.columns(data_key)]
    Repo.execute(repo, sql, params)
  end

  def insert_retired(repo, user, key_id, data_key) do
    sql = """
    INSERT INTO kith.signal_retired_keys (user_id, key_id, data_key) VALUES ($1, $2, $3)
    ON CONFLICT (user_id, key_id) DO NOTHING
    """

    Repo.execute(repo, sql, [user, {:blob, key_id}, {:blob, data_key}])
  end

  @spec retired_key(Repo.repo(), Address.user(), binary) :: nil | binary
  def retired_key(repo, user, key_id) do
    sql = "SELECT data_key FROM kith.signal_retired_keys WHERE user_id = $1 AND key_id = $2"

    with [[data_key]] <- Repo.rows(repo, sql, [user, {:blob, key_id}]),
         do: data_key,
         else: ([] -> nil)
  end

  @doc "What belongs to the account alone goes with it."
  def delete_unowned(repo, user) do
    for table <- ~w(signal_retired_keys signal_unlock_tokens) do
      sql = """
      DELETE FROM kith.#{table} WHERE user_id = $1
        AND NOT EXISTS (SELECT 1 FROM kith.signal_accounts WHERE user_id = $2)
      """

      Repo.execute(repo, sql, [user, user])
    end

    :ok
  end

  @doc "Users whose data key was drawn before a time, or for another cipher and is under no password, with that key; some at a time."
  def old(repo, after_user, {before, cipher}, limit) do
    {other_cipher, params} = WrappedKey.other_cipher(cipher, {4, 5})

    sql = """
    SELECT user_id, data_key FROM kith.signal_accounts
    WHERE user_id > $1 AND (COALESCE(key_changed_at, created_at) < $2 OR #{other_cipher})
    ORDER BY user_id LIMIT $3
    """

    for row <- Repo.rows(repo, sql, [after_user, before, limit | params]), do: List.to_tuple(row)
  end

  ## Tokens

  def insert_token(repo, user, token_id, expires_at) do
    sql =
      "INSERT INTO kith.signal_unlock_tokens (user_id, token_id, expires_at) VALUES ($1, $2, $3)"

    Repo.execute(repo, sql, [user, {:blob, token_id}, expires_at])
  end

  def token?(repo, user, token_id, now) do
    sql = """
    SELECT 1 FROM kith.signal_unlock_tokens WHERE user_id = $1 AND token_id = $2 AND expires_at > $3
    """

    Repo.rows(repo, sql, [user, {:blob, token_id}, now]) != []
  end

  def delete_tokens(repo, user),
    do: Repo.execute(repo, "DELETE FROM kith.signal_unlock_tokens WHERE user_id = $1", [user])

  def delete_token(repo, user, token_id) do
    sql = "DELETE FROM kith.signal_unlock_tokens WHERE user_id = $1 AND token_id = $2"
    Repo.execute(repo, sql, [user, {:blob, token_id}])
  end

  def delete_expired_tokens(repo, now),
    do: Repo.execute(repo, "DELETE FROM kith.signal_unlock_tokens WHERE expires_at <= $1", [now])

  @doc "The id of a data key, of the wrapped key itself or of a row that is sealed under it."
  def key_id(<<_version, _algorithm, id::binary-8, _::binary>>), do: id
  def key_id(_other), do: nil
end
