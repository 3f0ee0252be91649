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
    prekeys: []
  ]

  @type prekey :: %{id: non_neg_integer, public_key: <<_::264>>}
  @type signed_prekey :: %{
          id: non_neg_integer,
          public_key: <<_::264>>,
          signature: <<_::512>>
        }

  @type t :: %__MODULE__{
          user: nil | Address.user(),
          device: nil | Address.device(),
          registration_id: non_neg_integer,
          identity_key: <<_::264>>,
          signed_prekey: signed_prekey,
          prekey: nil | prekey,
          prekeys: [prekey]
        }

  @doc """
  Returns a bundle from a map with the fields above as atoms.

  Shapes and sizes are checked here, the signature by `Kith.publish_bundle/3`. What does not fit is
  `:malformed`, more than 1,000 one-time prekeys are `:too_large`.
  """
  @spec new(map) :: {:ok, t} | {:error, Error.t()}
  def new(%{} = fields) do
    prekeys = Map.get(fields, :prekeys, [])

    with {:ok, registration_id} <- id(Map.get(fields, :registration_id)),
         {:ok, identity_key} <- public_key(Map.get(fields, :identity_key)),
         {:ok, signed_prekey} <- signed_prekey(Map.get(fields, :signed_prekey)),
         {:ok, prekey} <- optional_prekey(Map.get(fields, :prekey)),
         :ok <- bounded(prekeys),
         {:ok, prekeys} <- each(prekeys, &prekey/1),
         {:ok, {user, device}} <- owner(fields) do
      {:ok,
       %__MODULE__{
         user: user,
         device: device,
         registration_id: registration_id,
         identity_key: identity_key,
         signed_prekey: signed_prekey,
         prekey: prekey,
         prekeys: prekeys
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
      "prekeys" => Enum.map(bundle.prekeys, &prekey_to_map/1)
    }
  end

  @doc """
  Parses what `to_map/1` made, after a trip through JSON.

  `"user"`, `"device"`, `"prekey"` and `"prekeys"` may be missing; other keys are ignored.
  """
  @spec from_map(map) :: {:ok, t} | {:error, Error.t()}
  def from_map(%{} = map) do
    with {:ok, identity_key} <- decode(map["identity_key"]),
         {:ok, signed_prekey} <- prekey_from_map(map["signed_prekey"]),
         {:ok, prekey} <- optional_from_map(map["prekey"]),
         prekeys = map["prekeys"] || [],
         :ok <- bounded(prekeys),
         {:ok, prekeys} <- each(prekeys, &prekey_from_map/1) do
      new(%{
        user: map["user"],
        device: map["device"],
        registration_id: map["registration_id"],
        identity_key: identity_key,
        signed_prekey: signed_prekey,
        prekey: prekey,
        prekeys: prekeys
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
      signed_prekey:
        {bundle.signed_prekey.id, bundle.signed_prekey.public_key, bundle.signed_prekey.signature},
      prekey: bundle.prekey && {bundle.prekey.id, bundle.prekey.public_key}
    }
  end

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

  defp optional_prekey(nil), do: {:ok, nil}
  defp optional_prekey(prekey), do: prekey(prekey)

  defp prekey(%{id: id, public_key: key}) do
    with {:ok, id} <- id(id), {:ok, key} <- public_key(key), do: {:ok, %{id: id, public_key: key}}
  end

  defp prekey(_), do: :error

  defp signed_prekey(%{signature: <<signature::binary-64>>} = signed) do
    with {:ok, prekey} <- prekey(signed), do: {:ok, Map.put(prekey, :signature, signature)}
  end

  defp signed_prekey(_), do: :error

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

  defp optional_from_map(nil), do: {:ok, nil}
  defp optional_from_map(map), do: prekey_from_map(map)

  defp prekey_from_map(%{"id" => id, "public_key" => key, "signature" => signature}) do
    with {:ok, key} <- decode(key),
         {:ok, signature} <- decode(signature),
         do: {:ok, %{id: id, public_key: key, signature: signature}}
  end

  defp prekey_from_map(%{"id" => id, "public_key" => key}) do
    with {:ok, key} <- decode(key), do: {:ok, %{id: id, public_key: key}}
  end

  defp prekey_from_map(_), do: :error

  # No field is longer than a signature: 64 bytes, 88 characters.
  defp decode(text) when is_binary(text) and byte_size(text) <= 88, do: Base.decode64(text)
  defp decode(_), do: :error

  defimpl Inspect do
    def inspect(bundle, _opts) do
      "#Kith.PreKeyBundle<#{Kernel.inspect(bundle.user)}/#{bundle.device}, " <>
        "signed prekey #{bundle.signed_prekey.id}, " <>
        "#{if bundle.prekey, do: "one-time prekey #{bundle.prekey.id}", else: "no one-time prekey"}, " <>
        "#{length(bundle.prekeys)} published>"
    end
  end
end
