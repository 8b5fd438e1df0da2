// Mailgun's own mock of its API, of the client that it publishes. Prints where it listens, and ends with its standard input.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/mailgun/mailgun-go/v4"
)

func main() {
	server := mailgun.NewMockServer()
	defer server.Stop()
	fmt.Println(server.URL())
	io.Copy(io.Discard, os.Stdin)
}
