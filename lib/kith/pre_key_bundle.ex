defmodule Kith.PreKeyBundle do
  @moduledoc """
  The public keys another device needs to start a session with this one.

  | field | |
  | --- | --- |
  | `user`, `device` | whose keys these are |
  | `registration_id` | a number the device chose at its installation |
  | `identity_key` | 33 bytes: `0x05` and a Curve25519 key |
  | `signed_prekey` | `%{id: integer, public_key: 33 bytes, signature: 64 bytes}` |
  | `prekey` | `%{id: integer, public_key: 33 bytes}` handed out once, or `nil` when none is left |
  | `prekeys` | a list of such, when a device publishes its stock; empty in a bundle that was handed out |
  | `kyber_prekey` | `%{id: integer, public_key: 1569 bytes, signature: 64 bytes}`: `0x08` and a Kyber-1024 key; `nil` makes it a bundle of version 3. When a device publishes: its key of last resort |
  | `kyber_prekeys` | a list of such, each to be handed out once; empty in a bundle that was handed out |

  All of it is public. `to_map/1` and `from_map/1` are the JSON-friendly form for a client that fetches or
  publishes over HTTP.
  """

  alias Kith.{Address, Error}

  @max_prekeys 1_000
  @max_id 0xFFFFFFFF

  @enforce_keys [:registration_id, :identity_key, :signed_prekey]
  defstruct [
    :user,
    :device,
    :registration_id,
    :identity_key,
    :signed_prekey,
    prekey: nil,
    prekeys: [],
    kyber_prekey: nil,
    kyber_prekeys: []
  ]

  @type prekey :: %{id: non_neg_integer, public_key: <<_::264>>}
  @type signed_prekey :: %{
          id: non_neg_integer,
          public_key: <<_::264>>,
          signature: <<_::512>>
        }
  @type kyber_prekey :: %{
          id: non_neg_integer,
          public_key: <<_::12_552>>,
          signature: <<_::512>>
        }

  @type t :: %__MODULE__{
          user: nil | Address.user(),
          device: nil | Address.device(),
          registration_id: non_neg_integer,
          identity_key: <<_::264>>,
          signed_prekey: signed_prekey,
          prekey: nil | prekey,
          prekeys: [prekey],
          kyber_prekey: nil | kyber_prekey,
          kyber_prekeys: [kyber_prekey]
        }

  @doc """
  Returns a bundle from a map with the fields above as atoms.

  Shapes and sizes are checked here, the signatures by `Kith.publish_bundle/3`. What does not fit is
  `:malformed`, and so are one-time Kyber prekeys without one of last resort. More than 1,000 one-time prekeys of a
  kind are `:too_large`.
  """
  @spec new(map) :: {:ok, t} | {:error, Error.t()}
  def new(%{} = fields) do
    prekeys = Map.get(fields, :prekeys, [])
    kyber_prekeys = Map.get(fields, :kyber_prekeys, [])

    with {:ok, registration_id} <- id(Map.get(fields, :registration_id)),
         {:ok, identity_key} <- public_key(Map.get(fields, :identity_key)),
         {:ok, signed_prekey} <- signed_prekey(Map.get(fields, :signed_prekey)),
         {:ok, prekey} <- optional(Map.get(fields, :prekey), &prekey/1),
         :ok <- bounded(prekeys),
         {:ok, prekeys} <- each(prekeys, &prekey/1),
         {:ok, kyber_prekey} <- optional(Map.get(fields, :kyber_prekey), &kyber_prekey/1),
         :ok <- bounded(kyber_prekeys),
         {:ok, kyber_prekeys} <- each(kyber_prekeys, &kyber_prekey/1),
         :ok <- last_resort(kyber_prekey, kyber_prekeys),
         {:ok, {user, device}} <- owner(fields) do
      {:ok,
       %__MODULE__{
         user: user,
         device: device,
         registration_id: registration_id,
         identity_key: identity_key,
         signed_prekey: signed_prekey,
         prekey: prekey,
         prekeys: prekeys,
         kyber_prekey: kyber_prekey,
         kyber_prekeys: kyber_prekeys
       }}
    else
      :error -> {:error, Error.new(:malformed)}
      {:error, %Error{}} = error -> error
    end
  end

  def new(other), do: raise(ArgumentError, "expected a map, got: #{inspect(other)}")

  @doc "Returns the bundle as a map with string keys, the keys in Base64."
  @spec to_map(t) :: map
  def to_map(%__MODULE__{} = bundle) do
    %{
      "user" => bundle.user,
      "device" => bundle.device,
      "registration_id" => bundle.registration_id,
      "identity_key" => Base.encode64(bundle.identity_key),
      "signed_prekey" => prekey_to_map(bundle.signed_prekey),
      "prekey" => bundle.prekey && prekey_to_map(bundle.prekey),
      "prekeys" => Enum.map(bundle.prekeys, &prekey_to_map/1),
      "kyber_prekey" => bundle.kyber_prekey && prekey_to_map(bundle.kyber_prekey),
      "kyber_prekeys" => Enum.map(bundle.kyber_prekeys, &prekey_to_map/1)
    }
  end

  @doc """
  Parses what `to_map/1` made, after a trip through JSON.

  `"user"`, `"device"` and all prekeys but the signed one may be missing; other keys are ignored.
  """
  @spec from_map(map) :: {:ok, t} | {:error, Error.t()}
  def from_map(%{} = map) do
    with {:ok, identity_key} <- decode(map["identity_key"]),
         {:ok, signed_prekey} <- prekey_from_map(map["signed_prekey"]),
         {:ok, prekey} <- optional(map["prekey"], &prekey_from_map/1),
         {:ok, prekeys} <- list_from_map(map["prekeys"]),
         {:ok, kyber_prekey} <- optional(map["kyber_prekey"], &prekey_from_map/1),
         {:ok, kyber_prekeys} <- list_from_map(map["kyber_prekeys"]) do
      new(%{
        user: map["user"],
        device: map["device"],
        registration_id: map["registration_id"],
        identity_key: identity_key,
        signed_prekey: signed_prekey,
        prekey: prekey,
        prekeys: prekeys,
        kyber_prekey: kyber_prekey,
        kyber_prekeys: kyber_prekeys
      })
    else
      :error -> {:error, Error.new(:malformed)}
      {:error, %Error{}} = error -> error
    end
  end

  def from_map(other), do: raise(ArgumentError, "expected a map, got: #{inspect(other)}")

  @doc false
  # The shape of the NIF contract.
  def to_native(%__MODULE__{} = bundle) do
    %{
      registration_id: bundle.registration_id,
      identity_key: bundle.identity_key,
      signed_prekey: signed_to_native(bundle.signed_prekey),
      prekey: bundle.prekey && {bundle.prekey.id, bundle.prekey.public_key},
      kyber_prekey: bundle.kyber_prekey && signed_to_native(bundle.kyber_prekey)
    }
  end

  @doc false
  def from_native(user, device, bundle) do
    %__MODULE__{
      user: user,
      device: device,
      registration_id: bundle.registration_id,
      identity_key: bundle.identity_key,
      signed_prekey: signed_from_native(bundle.signed_prekey),
      prekey: with({id, public_key} <- bundle.prekey, do: %{id: id, public_key: public_key}),
      kyber_prekey:
        with({_, _, _} = prekey <- bundle.kyber_prekey, do: signed_from_native(prekey))
    }
  end

  @doc false
  # A prekey with its signature, as the native library and the store have it.
  def signed_to_native(%{id: id, public_key: public_key, signature: signature}),
    do: {id, public_key, signature}

  defp signed_from_native({id, public_key, signature}),
    do: %{id: id, public_key: public_key, signature: signature}

  @doc false
  def stock(%__MODULE__{prekey: nil, prekeys: prekeys}), do: prekeys
  def stock(%__MODULE__{prekey: prekey, prekeys: prekeys}), do: [prekey | prekeys]

  defp owner(%{user: user, device: device}) when user != nil,
    do: Address.parse({user, device || 1})

  defp owner(_), do: {:ok, {nil, nil}}

  defp id(id) when is_integer(id) and id in 0..@max_id, do: {:ok, id}
  defp id(_), do: :error

  defp public_key(<<5, _::binary-32>> = key), do: {:ok, key}
  defp public_key(_), do: :error

  defp optional(nil, _parse), do: {:ok, nil}
  defp optional(value, parse), do: parse.(value)

  defp prekey(%{id: id, public_key: key}) do
    with {:ok, id} <- id(id), {:ok, key} <- public_key(key), do: {:ok, %{id: id, public_key: key}}
  end

  defp prekey(_), do: :error

  defp signed_prekey(%{signature: <<signature::binary-64>>} = signed) do
    with {:ok, prekey} <- prekey(signed), do: {:ok, Map.put(prekey, :signature, signature)}
  end

  defp signed_prekey(_), do: :error

  defp kyber_prekey(%{
         id: id,
         public_key: <<8, _::binary-1568>> = public_key,
         signature: <<signature::binary-64>>
       }) do
    with {:ok, id} <- id(id),
         do: {:ok, %{id: id, public_key: public_key, signature: signature}}
  end

  defp kyber_prekey(_), do: :error

  # When the others are handed out, somebody still has to be able to write.
  defp last_resort(nil, [_ | _]), do: :error
  defp last_resort(_kyber_prekey, _kyber_prekeys), do: :ok

  defp bounded(list) when is_list(list) do
    if List.improper?(list) or length(list) <= @max_prekeys,
      do: :ok,
      else: {:error, Error.new(:too_large)}
  end

  defp bounded(_), do: :error

  defp each(list, fun) do
    if List.improper?(list), do: :error, else: each(list, fun, [])
  end

  defp each([], _fun, done), do: {:ok, Enum.reverse(done)}

  defp each([item | rest], fun, done) do
    with {:ok, value} <- fun.(item), do: each(rest, fun, [value | done])
  end

  defp prekey_to_map(prekey) do
    Map.new(prekey, fn
      {:id, id} -> {"id", id}
      {field, bytes} -> {Atom.to_string(field), Base.encode64(bytes)}
    end)
  end

  defp list_from_map(list) do
    list = list || []
    with :ok <- bounded(list), do: each(list, &prekey_from_map/1)
  end

  defp prekey_from_map(%{"id" => id, "public_key" => key, "signature" => signature}) do
    with {:ok, key} <- decode(key),
         {:ok, signature} <- decode(signature),
         do: {:ok, %{id: id, public_key: key, signature: signature}}
  end

  defp prekey_from_map(%{"id" => id, "public_key" => key}) do
    with {:ok, key} <- decode(key), do: {:ok, %{id: id, public_key: key}}
  end

  defp prekey_from_map(_), do: :error

  # No field is longer than a Kyber key: 1569 bytes, 2092 characters.
  defp decode(text) when is_binary(text) and byte_size(text) <= 2092, do: Base.decode64(text)
  defp decode(_), do: :error

  defimpl Inspect do
    def inspect(bundle, _opts) do
      "#Kith.PreKeyBundle<#{Kernel.inspect(bundle.user)}/#{bundle.device}, " <>
        "signed prekey #{bundle.signed_prekey.id}, " <>
        "#{prekey("one-time prekey", bundle.prekey)}, #{prekey("Kyber prekey", bundle.kyber_prekey)}, " <>
        "#{length(bundle.prekeys)} and #{length(bundle.kyber_prekeys)} published>"
    end

    defp prekey(name, nil), do: "no #{name}"
    defp prekey(name, %{id: id}), do: "#{name} #{id}"
  end
end
