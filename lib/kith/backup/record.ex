defmodule Kith.Backup.Record do
  @moduledoc false
  # What of a record is public, as bytes. docs/state-format.md has the table. A field is absent, 00; a number, 01 and 8
  # bytes; or bytes, 02, their length in 4 bytes and themselves.

  alias Kith.Address
  import Address, only: [is_device: 1]

  @account 1
  @device 2
  @prekey 3
  @base_key 4
  @peer 5
  @session 6
  @archived 7
  @entry 8
  @message 9
  @ending 10

  # What comes out of a record may be put into any column, so all of it is checked.
  @prekey_kinds %{
    "one_time" => :one_time,
    "signed" => :signed,
    "kyber_one_time" => :kyber_one_time,
    "kyber_last_resort" => :kyber_last_resort
  }

  @max_id 0xFFFFFFFF
  @max_integer 0x7FFFFFFFFFFFFFFF

  defguardp is_id(id) when is_integer(id) and id in 0..@max_id
  defguardp is_count(n) when is_integer(n) and n in 0..@max_integer
  defguardp is_time(n) when is_nil(n) or is_count(n)
  defguardp is_bytes(bytes, size) when is_binary(bytes) and byte_size(bytes) == size

  @doc "`{kind, public}` of a record."
  @spec encode(tuple) :: {byte, binary}
  def encode({:account, user, at}), do: {@account, fields([user, at])}
  def encode({:device, fields}), do: {@device, fields(fields)}
  def encode({:prekey, fields}), do: {@prekey, fields(fields)}
  def encode({:base_key, fields}), do: {@base_key, fields(fields)}
  def encode({:peer, fields}), do: {@peer, fields(fields)}
  def encode({:session, fields}), do: {@session, fields(fields)}
  def encode({:archived, fields}), do: {@archived, fields(fields)}
  def encode({:entry, fields}), do: {@entry, fields(fields)}
  def encode({:message, fields}), do: {@message, fields(fields)}
  def encode({:ending, count}), do: {@ending, fields([count])}

  defp fields(fields), do: IO.iodata_to_binary(Enum.map(fields, &field/1))

  defp field(nil), do: <<0>>
  defp field(number) when is_integer(number), do: <<1, number::64>>
  defp field(bytes) when is_binary(bytes), do: [<<2, byte_size(bytes)::32>>, bytes]
  # SQLite keeps anything in any column.
  defp field(_other), do: raise(Kith.Error.new(:corrupted_state))

  @doc "The record, or `:error` for what none has been made of here."
  @spec decode({byte, binary}) :: {:ok, tuple} | :error
  def decode({kind, public}) do
    with {:ok, fields} <- read(public, []), do: record(kind, fields)
  end

  defp read(<<>>, fields), do: {:ok, Enum.reverse(fields)}
  defp read(<<0, rest::binary>>, fields), do: read(rest, [nil | fields])
  defp read(<<1, number::64, rest::binary>>, fields), do: read(rest, [number | fields])

  defp read(<<2, size::32, bytes::binary-size(size), rest::binary>>, fields),
    do: read(rest, [:binary.copy(bytes) | fields])

  defp read(_bytes, _fields), do: :error

  defp record(@account, [user, at]) when is_count(at), do: named({:account, user, at}, user)

  defp record(@device, [device, registration_id, public_key, next, kyber_next, at])
       when is_device(device) and is_id(registration_id) and is_bytes(public_key, 33) and
              next in 1..0x1FFFFFF and kyber_next in 1..0x1FFFFFF and is_count(at) do
    {:ok,
     {:device,
      %{
        device: device,
        registration_id: registration_id,
        public_key: public_key,
        next_prekey_id: next,
        next_kyber_prekey_id: kyber_next,
        created_at: at
      }}}
  end

  defp record(@prekey, [device, kind, id, public_key, signature, claimed, used, superseded, at])
       when is_device(device) and is_map_key(@prekey_kinds, kind) and is_id(id) and
              is_binary(public_key) and byte_size(public_key) <= 2_048 and
              (is_nil(signature) or is_bytes(signature, 64)) and is_time(claimed) and
              is_time(used) and is_time(superseded) and is_count(at) do
    {:ok,
     {:prekey,
      %{
        device: device,
        kind: @prekey_kinds[kind],
        id: id,
        public_key: public_key,
        signature: signature,
        claimed_at: claimed,
        used_at: used,
        superseded_at: superseded,
        created_at: at
      }}}
  end

  defp record(@base_key, [device, base_key, signed_prekey_id, at])
       when is_device(device) and is_bytes(base_key, 33) and is_id(signed_prekey_id) and
              is_count(at),
       do: {:ok, {:base_key, device, {signed_prekey_id, base_key}, at}}

  defp record(@peer, [device, peer, peer_device])
       when is_device(device) and is_device(peer_device),
       do: named({:peer, device, {peer, peer_device}}, peer)

  defp record(@session, [device, peer, peer_device, established, received])
       when is_device(device) and is_device(peer_device) and is_time(established) and
              is_time(received),
       do: named({:session, device, {peer, peer_device}, established, received}, peer)

  defp record(@archived, [device, peer, peer_device, position])
       when is_device(device) and is_device(peer_device) and is_count(position),
       do: named({:archived, device, {peer, peer_device}, position}, peer)

  defp record(@entry, [device, peer, peer_device, session_id, group, number, at])
       when is_device(device) and is_device(peer_device) and is_bytes(session_id, 16) and
              is_binary(group) and byte_size(group) <= 33 and is_id(number) and is_time(at),
       do: named({:entry, device, {peer, peer_device}, {session_id, group, number}, at}, peer)

  defp record(@message, [device, thread, position, id, sender, sender_device, sent_at, expires_at])
       when is_device(device) and is_count(position) and is_bytes(id, 16) and is_time(sent_at) and
              is_time(expires_at) do
    place = %{
      position: position,
      message_id: id,
      sender: if(sender, do: {sender, sender_device}),
      sent_at: sent_at,
      expires_at: expires_at
    }

    if thread?(thread) and sender?(sender, sender_device),
      do: {:ok, {:message, device, thread, place}},
      else: :error
  end

  defp record(@ending, [count]) when is_count(count), do: {:ok, {:ending, count}}
  defp record(_kind, _fields), do: :error

  defp named(record, user) do
    case Address.parse(user) do
      {:ok, {^user, 1}} -> {:ok, record}
      _no_name -> :error
    end
  end

  defp sender?(nil, nil), do: true
  defp sender?(sender, device), do: match?({:ok, _}, Address.parse({sender, device}))

  # As Kith.MessageArchive writes it.
  defp thread?("t:" <> thread), do: name?(thread)

  defp thread?("d:" <> users) do
    case Integer.parse(users) do
      {size, ":" <> users} when size in 1..255//1 and byte_size(users) > size ->
        first = binary_part(users, 0, size)
        second = binary_part(users, size, byte_size(users) - size)
        name?(first) and name?(second) and first <= second

      _another ->
        false
    end
  end

  defp thread?(_thread), do: false

  defp name?(name), do: match?({:ok, {^name, 1}}, Address.parse(name))
end
