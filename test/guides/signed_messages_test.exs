defmodule Kith.SignedMessagesGuideTest do
  # The clients of docs/guides/signed-messages.md, in their languages, against a service here.
  use Kith.Case, async: true

  alias Kith.{ClientKey, Signed}

  @guide "docs/guides/signed-messages.md"
  @external_resource @guide
  @clients "test/support/clients"

  # Where a language is missing, somebody has to say that its client shall be left out.
  @languages [
    python: {"python3", ~w(-c) ++ ["import cryptography"], "KITH_WITHOUT_PYTHON"},
    javascript:
      {"node", ~w(-e) ++ ["process.exit(+(parseInt(process.versions.node) < 20))"],
       "KITH_WITHOUT_NODE"}
  ]

  for {language, {program, probe, variable}} <- @languages do
    describe "the client in #{language}" do
      @describetag skip: if(System.get_env(variable) == "1", do: variable <> "=1", else: false)

      setup do
        there!(unquote(program), unquote(probe), unquote(variable))
        %{client: client(unquote(language)), kith: start_kith!()}
      end

      test "registers, calls and is answered", %{client: client, kith: kith} do
        key = registered!(client, kith)
        assert key.owner == "till ä"

        sent = envelope(client, ["request", "orders", Base.encode64("pay 10 ä")])
        changed = Map.update!(sent, "timestamp", &(&1 + 1))
        assert {:error, %{reason: :tampered}} = Signed.verify(kith, changed, audience: "orders")
        assert {:error, %{reason: :tampered}} = Signed.verify(kith, sent, audience: "other")
        assert {:ok, message} = Signed.verify(kith, sent, audience: "orders")
        assert {message.payload, message.owner} == {"pay 10 ä", "till ä"}
        assert {:error, %{reason: :duplicate}} = Signed.verify(kith, sent, audience: "orders")

        response = Signed.sign!(kith, <<0, 255, "paid">>, reply_to: message)
        [%{public_key: service}] = Signed.service_keys!(kith)
        arguments = ["answer", Base.encode64(service), sent["public_key_id"]]
        fields = fn response -> Enum.flat_map(response, fn {k, v} -> [k, to_string(v)] end) end

        assert {:ok, %{"payload" => payload}} =
                 run(client, arguments ++ [sent["nonce"] | fields.(response)])

        assert Base.decode64!(payload) == <<0, 255, "paid">>

        another = Base.encode64(:crypto.strong_rand_bytes(16))
        assert {:error, output} = run(client, arguments ++ [another | fields.(response)])
        assert output =~ "a response to something else"
        changed = %{response | "payload" => Base.encode64("not paid")}
        assert {:error, _} = run(client, arguments ++ [sent["nonce"] | fields.(changed)])
      end

      test "opens what was sealed for it, and seals what opens here", context do
        %{client: client, kith: kith} = context
        [%{public_key: service}] = ClientKey.service_keys!(kith)
        service = Base.encode64(service)
        options = [info: "user-42-file-3", aad: "row 7"]

        {:ok, made} =
          run(client, ["seal", service, "user-42-file-3", Base.encode64("mine"), "row 7"])

        public = {:x25519, Base.decode64!(made["public_key"])}
        assert ClientKey.open!(kith, public, Base.decode64!(made["sealed"]), options) == "mine"

        sealed = Base.encode64(ClientKey.seal!(kith, public, "yours", options))
        arguments = ["unseal", service, "user-42-file-3", sealed]
        assert {:ok, %{"plaintext" => plaintext}} = run(client, arguments ++ ["row 7"])
        assert Base.decode64!(plaintext) == "yours"
        assert {:error, _} = run(client, arguments ++ ["row 8"])
      end
    end
  end

  describe "the reader of exports in python" do
    @describetag skip:
                   if(System.get_env("KITH_WITHOUT_PYTHON") == "1",
                     do: "KITH_WITHOUT_PYTHON=1",
                     else: false
                   )

    test "reads what is whole, and refuses what was cut or changed" do
      {program, probe, variable} = @languages[:python]
      there!(program, probe, variable)
      client = client(:python)
      secret = :crypto.strong_rand_bytes(32)
      key = Signed.Export.key!({"2026-11", {:key, secret}})
      rows = ["", "ä", :binary.copy("x", 70_000), <<0, 255>>]
      export = rows |> Signed.Export.stream(key, purpose: "orders") |> Enum.into(<<>>)
      file = Path.join(tmp_dir!(), "export")

      read = fn bytes, purpose ->
        File.write!(file, bytes)
        run(client, ["export", file, Base.encode64(secret), purpose], &lines/1)
      end

      assert {:ok, read_rows} = read.(export, "orders")
      assert for({"row", row} <- read_rows, do: Base.decode64!(row)) == rows
      assert {:error, _} = read.(export, "payments")

      for changed <- [
            binary_part(export, 0, byte_size(export) - 45),
            binary_part(export, 0, byte_size(export) - 1),
            corrupt(export, 40),
            export <> export
          ],
          do: assert({:error, _} = read.(changed, "orders"))
    end
  end

  defp there!(program, probe, variable) do
    found = System.find_executable(program)

    if found == nil or elem(System.cmd(found, probe, stderr_to_stdout: true), 1) != 0 do
      raise "#{program} (Python with the package cryptography, or Node 20) is missing: install it, or set " <>
              "#{variable}=1 to leave its client untested"
    end
  end

  # The code of the guide and what drives it, in a folder of their own.
  defp client(:python) do
    folder = tmp_dir!()
    [client, export] = code("python")
    File.write!(Path.join(folder, "client.py"), client)
    File.write!(Path.join(folder, "export.py"), export)
    File.cp!(Path.join(@clients, "driver.py"), Path.join(folder, "driver.py"))
    {"python3", Path.join(folder, "driver.py"), folder}
  end

  defp client(:javascript) do
    folder = tmp_dir!()
    [client] = code("javascript")
    File.write!(Path.join(folder, "client.mjs"), client)
    File.cp!(Path.join(@clients, "driver.mjs"), Path.join(folder, "driver.mjs"))
    {"node", Path.join(folder, "driver.mjs"), folder}
  end

  defp code(language) do
    for [_, code] <- Regex.scan(~r/^```#{language}\n(.*?)^```$/ms, File.read!(@guide)), do: code
  end

  defp registered!(client, kith) do
    challenge = Signed.challenge!(kith, "till ä")
    {:ok, made} = run(client, ["register", "till ä", Base.encode64(challenge)])

    [public_key, signature] =
      for field <- ~w(public_key signature), do: Base.decode64!(made[field])

    proof = %{challenge: challenge, signature: signature}
    Signed.register!(kith, "till ä", public_key, proof, [])
  end

  defp envelope(client, arguments) do
    {:ok, fields} = run(client, arguments)

    Map.new(fields, fn {field, value} ->
      {field, if(field in ~w(version timestamp), do: String.to_integer(value), else: value)}
    end)
  end

  # Node 20 calls these algorithms experimental on standard error.
  defp run({program, driver, folder}, [command | arguments], read \\ &Map.new(lines(&1))) do
    options = [stderr_to_stdout: true, env: [{"NODE_NO_WARNINGS", "1"}]]

    case System.cmd(program, [driver, command, folder | arguments], options) do
      {output, 0} -> {:ok, read.(output)}
      {output, _} -> {:error, output}
    end
  end

  defp lines(output) do
    for line <- String.split(output, "\n", trim: true),
        [field | value] = String.split(line, " ", parts: 2),
        do: {field, Enum.join(value)}
  end
end
