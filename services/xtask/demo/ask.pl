# Asks for a URL through the proxy that a workspace has on its own loopback, as http_proxy in its environment says.
use IO::Socket::INET;
my ($proxy) = $ENV{http_proxy} =~ m{([0-9.]+:[0-9]+)};
my $socket = IO::Socket::INET->new(PeerAddr => $proxy) or die "connect to $proxy: $!\n";
my ($host) = $ARGV[0] =~ m{^http://([^/]+)};
print $socket "GET $ARGV[0] HTTP/1.1\r\nHost: $host\r\nConnection: close\r\n\r\n";
print while <$socket>;
