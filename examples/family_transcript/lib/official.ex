defmodule FamilyTranscript.Official do
  @moduledoc """
  A person who talks with the official Signal client, in a process of its own.

  Their private keys are made there and stay there. Kith relays their public prekeys and never holds more. The
  commands of the process are in `test/interop/peer/README.md`.
  """

  alias FamilyTranscript.{Failure, JSON}

  @release "0.103"
  @peer Path.expand("../../../test/interop/peer", __DIR__)
  @timeout 60_000
  # One for each person who starts a session, and some for those who start one at the same time.
  @spare_prekeys 10

  @enforce_keys [:name, :port]
  defstruct [:name, :port, :about, :published]

  @doc "Starts the client, in a release of `test/interop/peer/README.md`, with a new identity of that name."
  def start(name, release \\ @release) do
    node =
      System.find_executable("node") ||
        raise Failure, "Node is missing: run this with `make demo`"

    port =
      Port.open({:spawn_executable, node}, [
        :binary,
        :exit_status,
        {:line, 1_048_576},
        args: ["peer.mjs", "--client", release],
        cd: @peer
      ])

    official = %__MODULE__{name: name, port: port}
    info = call(official, "info", %{})
    call(official, "create_identity", %{name: name})
    %{official | about: "#{info["version"]} on Node #{info["node"]}"}
  end

  def stop(%__MODULE__{port: port}), do: Port.close(port)

  @doc "The public keys, as `Kith.publish_bundle/3` takes them: of each one-time prekey as many as may be needed."
  def bundle(official, people) do
    %{"signed_prekey" => signed, "kyber_prekey" => last_resort} =
      bundle = call(official, "publish_bundle", %{one_time: false})["bundle"]

    one_time = %{signed_prekey_id: signed["id"], kyber_one_time: true}

    bundles =
      for _ <- 1..(people + @spare_prekeys),
          do: call(official, "publish_bundle", one_time)["bundle"]

    %{
      registration_id: bundle["registration_id"],
      identity_key: bytes(bundle["identity_key"]),
      signed_prekey: prekey(signed),
      prekeys: for(%{"prekey" => key} <- bundles, do: prekey(key)),
      kyber_prekey: prekey(last_resort),
      kyber_prekeys: for(%{"kyber_prekey" => key} <- bundles, do: prekey(key))
    }
  end

  defp prekey(%{"id" => id, "public" => public, "signature" => signature}),
    do: %{id: id, public_key: bytes(public), signature: bytes(signature)}

  defp prekey(%{"id" => id, "public" => public}), do: %{id: id, public_key: bytes(public)}

  @doc "Encrypts for one person. `fetch` returns that person's prekey bundle when a session has to be started."
  def encrypt(official, to, plaintext, fetch) do
    unless call(official, "session_info", %{remote: %{name: to}})["session"]["usable"] do
      call(official, "process_bundle", %{remote: %{name: to}, bundle: to_peer(fetch.())})
    end

    message = call(official, "encrypt", %{remote: %{name: to}, plaintext: hex(plaintext)})
    type = if message["type"] == 3, do: :prekey, else: :message
    Kith.Envelope.new(official.name, to, type, bytes(message["body"]))
  end

  @doc "Opens an envelope."
  def decrypt(official, %Kith.Envelope{from: {from, 1}, type: type, body: body}) do
    type = if type == :prekey, do: 3, else: 2
    params = %{remote: %{name: from}, type: type, body: hex(body)}
    bytes(call(official, "decrypt", params)["plaintext"])
  end

  defp to_peer(%Kith.PreKeyBundle{} = bundle) do
    %{
      name: bundle.user,
      device_id: bundle.device,
      registration_id: bundle.registration_id,
      identity_key: hex(bundle.identity_key),
      prekey: bundle.prekey && to_peer_prekey(bundle.prekey),
      signed_prekey: to_peer_prekey(bundle.signed_prekey),
      kyber_prekey: bundle.kyber_prekey && to_peer_prekey(bundle.kyber_prekey)
    }
  end

  defp to_peer_prekey(%{id: id, public_key: public_key, signature: signature}),
    do: %{id: id, public: hex(public_key), signature: hex(signature)}

  defp to_peer_prekey(%{id: id, public_key: public_key}), do: %{id: id, public: hex(public_key)}

  @doc "Sends one command and returns its result."
  def call(%__MODULE__{port: port}, method, params) do
    request = %{jsonrpc: "2.0", id: 1, method: method, params: params}
    Port.command(port, [JSON.encode(request), ?\n])

    case JSON.decode(reply(port, [])) do
      %{"result" => result} ->
        result

      %{"error" => error} ->
        raise Failure, "the official client refused #{method}: #{error["message"]}"
    end
  end

  defp reply(port, parts) do
    receive do
      {^port, {:data, {:noeol, part}}} ->
        reply(port, [part | parts])

      {^port, {:data, {:eol, part}}} ->
        [part | parts] |> Enum.reverse() |> IO.iodata_to_binary()

      {^port, {:exit_status, status}} ->
        raise Failure, "the official client stopped with status #{status}"
    after
      @timeout -> raise Failure, "the official client does not answer"
    end
  end

  @doc "Bytes as the client writes them."
  def hex(bytes), do: Base.encode16(bytes, case: :lower)

  @doc "What the client wrote as bytes."
  def bytes(hex), do: Base.decode16!(hex, case: :lower)
end
