-- The Schema Registry keeps its schemas and their ids here: ids that changed with a restart would make records unreadable.
CREATE DATABASE registry;
